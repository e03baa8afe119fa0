"""The benchmark's data and references against the format's reference and against a plain loop."""

from __future__ import annotations

import pytest
import torch

from gb10.nvfp4 import dequantize
from gb10.sparse24 import Sparse24Weight, unpack
from gb10_lab.kernel_bench import data
from gb10_lab.kernel_bench.shapes import Dense, Moe

CPU = torch.device("cpu")
LAYER = Moe("any", "any", 12, 3, 64, 32, shared=48)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def test_decode_gives_the_numbers_of_the_reference() -> None:
    weight = data.nvfp4(40, 96, CPU)
    wanted = dequantize(weight.packed, weight.scales, 1.0).double() * weight.global_scale.double()
    assert torch.equal(data.decode(weight), wanted)
    assert torch.equal(data.decode(weight, 8, 24), wanted[8:24])


def test_products_are_of_order_one() -> None:
    x = data.activations(4, 512, CPU)
    for weight in (data.nvfp4(256, 512, CPU), data.fp8(Dense("any", "any", 256, 512), CPU)):
        assert 0.5 < float(data.product(x, weight).std()) < 2


def test_a_layer_is_the_sum_over_its_experts() -> None:
    weights, routed = data.moe(LAYER, CPU), data.routing(LAYER, 5, False, CPU)
    x = data.activations(5, LAYER.hidden, CPU)

    def expert(row: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
        gate, up = (w13 @ row).chunk(2)
        return w2 @ (gate * torch.sigmoid(gate) * up)

    def decoded(stack: data.Nvfp4, i: int) -> torch.Tensor:
        return data.decode(data.Nvfp4(stack.packed[i], stack.scales[i], stack.global_scale[i]))

    assert weights.shared_w13 is not None
    assert weights.shared_w2 is not None
    shared = (data.decode(weights.shared_w13), data.decode(weights.shared_w2))
    for token in range(5):
        row = x[token].double()
        wanted = expert(row, *shared)
        for slot in range(LAYER.topk):
            i = int(routed.ids[token, slot])
            part = expert(row, decoded(weights.w13, i), decoded(weights.w2, i))
            wanted = wanted + float(routed.weights[token, slot]) * part
        got = data.moe_reference(x, weights, routed)[token]
        assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("correlated", [False, True])
def test_routing_gives_every_token_distinct_experts(correlated: bool) -> None:
    layer = Moe("any", "any", 64, 4, 64, 32)
    routed = data.routing(layer, 16, correlated, CPU)
    assert routed.ids.dtype == torch.int32
    assert all(len(set(row)) == layer.topk for row in routed.ids.tolist())
    assert 0 <= int(routed.ids.min()) <= int(routed.ids.max()) < layer.experts
    assert torch.allclose(routed.weights.sum(dim=1), torch.ones(16))
    chosen = len(set(routed.ids.flatten().tolist()))
    assert (chosen <= 4 * layer.topk) is correlated


def test_a_packed_weight_repeats_its_rows_and_keeps_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_REFERENCE_ROWS", 32)
    packed, dense = data.sparse24(Dense("any", "any", 72, 256), CPU)
    numbers = data.decode(dense)
    assert numbers.shape == (72, 256)
    assert torch.equal(numbers[32:64], numbers[:32])
    assert torch.equal(numbers[64:], numbers[:8])
    assert int((numbers.view(72, 64, 4) != 0).sum(dim=-1).max()) == 2
    again = unpack(
        Sparse24Weight(packed.values, packed.positions, packed.scales, packed.global_scale, 72, 256)
    )
    assert torch.equal(again.packed, dense.packed)
    assert torch.equal(again.block_scales.view(torch.uint8), dense.scales.view(torch.uint8))


def test_errors_are_seen() -> None:
    reference = torch.ones(4, 4, dtype=torch.float64)
    out = reference.to(torch.bfloat16)
    assert data.relative_error(out, reference) == 0
    out[0, 0] = float("nan")
    assert not data.relative_error(out, reference) <= 1
    assert data.differing(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 0])) == 0.5


def test_a_clone_shares_nothing() -> None:
    weights = data.moe(LAYER, CPU)
    clone = data.clone(weights)
    assert torch.equal(clone.w13.packed, weights.w13.packed)
    assert clone.w13.packed.data_ptr() != weights.w13.packed.data_ptr()
    assert clone.shared_w2 is not None
