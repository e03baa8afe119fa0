"""The benchmark's arithmetic: percentiles, rates, floors, byte counts."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gb10_lab.kernel_bench import data, figures, shapes

TIMES = st.lists(st.floats(0.1, 1e6), min_size=2, max_size=40)
CPU = torch.device("cpu")
STREAMING_BYTES = 512 * 10**6


@given(TIMES)
def test_percentiles_are_those_of_the_statistics_module(values: list[float]) -> None:
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    spread = figures.spread(values)
    assert spread.median == pytest.approx(statistics.median(values))
    assert spread.p10 == pytest.approx(deciles[0])
    assert spread.p90 == pytest.approx(deciles[-1])
    assert (spread.min, spread.samples) == (min(values), len(values))


def test_a_percentile_of_nothing_or_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        figures.percentile([], 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        figures.percentile([1.0], 1.5)


def test_two_timings_agree_within_their_spread_or_two_percent() -> None:
    narrow, near, far = (figures.spread([t, t, t]) for t in (100.0, 101.9, 103.0))
    wide = figures.spread([80.0, 100.0, 120.0])
    assert figures.agree(narrow, near)
    assert not figures.agree(narrow, far)
    assert figures.agree(wide, far)


def test_rates_and_floors() -> None:
    assert figures.gbps(4.3e9, 1000.0) == pytest.approx(4300.0)
    assert figures.floor_us(233e6, 233.0, launches=2, launch_us=1.5) == pytest.approx(1003.0)
    assert figures.predict_gb10_us(233e6, 0.5, launches=1) == pytest.approx(2002.0)
    assert figures.predict_gb10_us(233e6, 1.07, launches=1) == pytest.approx(1002.0), "no better than a read"
    with pytest.raises(ValueError, match="positive fraction"):
        figures.predict_gb10_us(1.0, 0.0, launches=1)


@given(st.integers(1, 10**9), st.integers(1, 10**8))
def test_a_rotation_exceeds_four_times_the_cache(bytes_each: int, cache: int) -> None:
    copies = figures.rotation(bytes_each, cache)
    assert copies * bytes_each > 4 * cache
    assert (copies - 1) * bytes_each <= 4 * cache


@pytest.mark.parametrize("kernel", sorted(shapes.STREAMING_DENSE))
def test_streaming_weights_are_large_enough(kernel: str) -> None:
    shape = shapes.STREAMING_DENSE[kernel]
    counted = {
        "nvfp4_gemv": shapes.nvfp4_bytes,
        "fp8_gemv": shapes.fp8_bytes,
        "sparse24_gemv": shapes.sparse24_bytes,
    }
    assert counted[kernel](shape.rows, shape.columns) >= STREAMING_BYTES
    layer = shapes.STREAMING_MOE
    assert layer.topk * shapes.expert_bytes(layer) >= STREAMING_BYTES


def test_known_byte_counts() -> None:
    next_layer = shapes.MOE[0]
    # 48 layers of 512 experts are 43,487,133,696 bytes in the checkpoint, with other float32 scales.
    assert 512 * 48 * shapes.expert_bytes(next_layer) == pytest.approx(43_487_133_696, rel=1e-4)
    assert shapes.nvfp4_bytes(2048, 4096) == pytest.approx(4.72e6, rel=1e-3)
    assert shapes.expected_distinct(next_layer, 1) == pytest.approx(10)
    # Two tokens with 2 of 4: the second finds 0, 1 or 2 new ones in 1, 4 and 1 of 6 cases.
    assert shapes.expected_distinct(shapes.Moe("", "", 4, 2, 64, 64), 2) == pytest.approx(3)


def test_counted_bytes_are_the_tensors_bytes() -> None:
    dense = shapes.Dense("any", "any", 48, 320)
    assert data.moved(data.nvfp4(48, 320, CPU)) == shapes.nvfp4_bytes(48, 320)
    assert data.moved(data.fp8(dense, CPU)) == shapes.fp8_bytes(48, 320)
    packed, kept = data.sparse24(dense, CPU)
    assert data.moved(packed) == shapes.sparse24_bytes(48, 320)
    assert data.moved(kept) == shapes.nvfp4_bytes(48, 320)
    layer = shapes.Moe("any", "any", 8, 2, 64, 32, shared=32)
    weights = data.moe(layer, CPU)
    routed = data.routing(layer, 3, False, CPU)
    x = data.activations(3, 64, CPU)
    shared = data.moved((weights.shared_w13, weights.shared_w2))
    experts = data.moved((weights.w13, weights.w2))
    assert experts == layer.experts * shapes.expert_bytes(layer)
    assert experts + shared + data.moved((x, x)) + data.moved(routed) == shapes.moe_bytes(
        layer, 3, layer.experts
    )
