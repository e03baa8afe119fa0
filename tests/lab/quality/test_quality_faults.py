"""The check finds a wrong quantiser, and only in the rows that use it.

Each fault is planted in the code that the gate calls. Figures with the fault are compared with figures
without it, under the tolerances of the committed expectation.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gb10 import fp8
from gb10.nvfp4 import dequantize, e2m1, global_scale_for, packing, ue4m3
from gb10.sparse24 import packing as sparse_packing
from gb10_lab.quality import expectation, variants
from gb10_lab.quality.figures import Figures

SOURCE = expectation.Source(582, 97, 0, "model", "calibration", "text")

NVFP4_ROWS = {
    "shipped",
    "shipped-w4a4",
    "fp8-dense",
    "fp8-dense-head",
    "nvfp4-dense",
    "nvfp4-dense-head",
    "nvfp4-dense-search",
    "nvfp4-dense-head-search",
    "shipped-search",
    "sparse24",
    "fp8-kv",
}


@pytest.fixture(scope="module")
def recorded(small_model: Any) -> dict[str, Any]:
    return expectation.content(SOURCE, small_model.figures())


def truncated_codes(patch: pytest.MonkeyPatch) -> None:
    """E2M1 towards zero instead of to the nearest."""
    values = torch.tensor(e2m1.VALUES)

    def encode(x: torch.Tensor) -> torch.Tensor:
        steps = torch.bucketize(x.abs().contiguous(), values, right=True) - 1
        return steps.to(torch.uint8) | (torch.signbit(x).to(torch.uint8) << 3)

    patch.setattr(e2m1, "encode", encode)


def no_saturation(patch: pytest.MonkeyPatch) -> None:
    """Block scales that are too small by an eighth: the largest value of a block is clipped."""
    encode = ue4m3.encode
    patch.setattr(ue4m3, "encode", lambda x: encode(x * 0.875))


def truncated_scales(patch: pytest.MonkeyPatch) -> None:
    """Block scales rounded down instead of to the nearest."""
    encode = ue4m3.encode

    def down(x: torch.Tensor) -> torch.Tensor:
        bits = encode(x)
        above = bits.view(torch.float8_e4m3fn).to(torch.float32) > x
        return torch.where(above, bits - 1, bits)

    patch.setattr(ue4m3, "encode", down)


def swapped_nibbles(patch: pytest.MonkeyPatch) -> None:
    """The odd index of a row in the low nibble."""
    pack = packing.pack
    patch.setattr(packing, "pack", lambda codes: pack(codes.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)))


def dropped_global_scale(patch: pytest.MonkeyPatch) -> None:
    """`weight_scale_2` forgotten when weights are read."""
    patch.setattr(variants, "dequantize", lambda w, s, _scale, dtype: dequantize(w, s, 1.0, dtype))


def one_fp8_scale(patch: pytest.MonkeyPatch) -> None:
    """One FP8 scale for the whole matrix."""
    rows = fp8.quantize_rows

    def one(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes, scale = rows(weight.reshape(1, -1))
        return codes.reshape(weight.shape), scale.expand(len(weight))

    patch.setattr(fp8, "quantize_rows", one)


def truncated_fp8(patch: pytest.MonkeyPatch) -> None:
    """E4M3 towards zero, in weights and in the KV cache."""
    nearest = fp8.encode

    def down(x: torch.Tensor) -> torch.Tensor:
        rounded = nearest(x)
        above = rounded.to(torch.float32).abs() > x.abs()
        return (rounded.view(torch.uint8) - above.to(torch.uint8)).view(torch.float8_e4m3fn)

    patch.setattr(fp8, "encode", down)


def first_two_of_four(patch: pytest.MonkeyPatch) -> None:
    """2:4 keeps the first two, not the largest."""

    def first(codes: torch.Tensor) -> torch.Tensor:
        groups = codes.unflatten(-1, (-1, 4))
        return torch.tensor([0, 1]).expand(*groups.shape[:-1], 2)

    patch.setattr(sparse_packing, "kept_positions", first)


def wrong_input_scale(patch: pytest.MonkeyPatch) -> None:
    """Input scales of amax / 448: block scales in sixths, most of them with fewer bits."""
    patch.setattr(variants, "global_scale_for", lambda amax: global_scale_for(amax) * 6 * 448)


def values_only(patch: pytest.MonkeyPatch) -> None:
    """The KV cache keeps its keys as they are."""
    cache = variants.fp8_kv_cache
    patch.setattr(variants, "fp8_kv_cache", lambda name, x: x if "k_cache" in name else cache(name, x))


FAULTS: list[tuple[Callable[[pytest.MonkeyPatch], None], set[str]]] = [
    (truncated_codes, NVFP4_ROWS),
    (no_saturation, NVFP4_ROWS),
    (truncated_scales, NVFP4_ROWS),
    (swapped_nibbles, NVFP4_ROWS),
    (dropped_global_scale, NVFP4_ROWS),
    (one_fp8_scale, {"fp8-dense", "fp8-dense-head"}),
    (truncated_fp8, {"fp8-dense", "fp8-dense-head", "fp8-kv", "bf16-fp8-kv"}),
    (first_two_of_four, {"sparse24"}),
    (wrong_input_scale, {"shipped-w4a4"}),
    (values_only, {"fp8-kv", "bf16-fp8-kv"}),
]


def rows_off(recorded: dict[str, Any], figures: dict[str, Figures]) -> set[str]:
    return {line.partition(":")[0] for line in expectation.differences(recorded, SOURCE, figures)}


@pytest.mark.parametrize(("plant", "rows"), FAULTS, ids=[plant.__name__ for plant, _ in FAULTS])
def test_a_planted_fault_is_found(
    plant: Callable[[pytest.MonkeyPatch], None],
    rows: set[str],
    recorded: dict[str, Any],
    small_model: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch)
    assert rows_off(recorded, small_model.figures()) == rows


def test_without_a_fault_all_rows_are_as_recorded(recorded: dict[str, Any], small_model: Any) -> None:
    assert rows_off(recorded, small_model.figures()) == set()
