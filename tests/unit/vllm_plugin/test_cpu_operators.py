"""The stand-ins for the CUDA operators against the independent forward pass."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import cpu_operators
from reference.activations import Recorder, Site
from reference.layers import GatedDeltaNet

from gb10 import fp8, nvfp4
from gb10.kernels.fp8_gemv import fp8_gemv
from gb10.kernels.moe_decode import SharedExpert, moe_decode
from gb10.kernels.nvfp4_gemv import nvfp4_gemv

BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def operators() -> cpu_operators.Library:
    torch.manual_seed(0)
    return cpu_operators.install()


def close(out: torch.Tensor, exact: torch.Tensor) -> bool:
    return bool((out.double() - exact.double()).norm() <= 4e-3 * exact.double().norm())


def test_the_gemvs() -> None:
    weight, x = torch.randn(40, 128), torch.randn(3, 128).to(BF16)
    codes, scales = fp8.quantize_rows(weight)
    bias = torch.randn(40).to(BF16)
    expected = x.float() @ fp8.dequantize(codes, scales).T + bias.float()
    assert close(fp8_gemv(x, codes, scales, bias), expected)
    one = nvfp4.quantize(weight)
    expected = x.float() @ nvfp4.dequantize(*one).T
    for swizzled in (False, True):
        block_scales = nvfp4.swizzle_128x4(one.block_scales) if swizzled else one.block_scales
        assert close(nvfp4_gemv(x, one.packed, block_scales, one.global_scale, swizzled=swizzled), expected)


def test_calls_are_recorded_and_bad_ones_refused(operators: cpu_operators.Library) -> None:
    codes, scales = fp8.quantize_rows(torch.randn(8, 64))
    operators.calls.clear()
    fp8_gemv(torch.zeros(5, 64, dtype=BF16), codes, scales)
    assert operators.calls == [("fp8_gemv", 5)]
    with pytest.raises(RuntimeError, match="do not take"):
        fp8_gemv(torch.zeros(17, 64, dtype=BF16), codes, scales)
    with pytest.raises(RuntimeError, match="contiguous"):
        fp8_gemv(torch.zeros(64, 5, dtype=BF16).T, codes, scales)


def test_experts() -> None:
    experts, hidden, inner, shared = 4, 128, 64, 128

    def weights(rows: int, columns: int, count: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        made = [nvfp4.quantize(torch.randn(rows, columns)) for _ in range(count)]
        exact = [nvfp4.dequantize(*each) for each in made]
        return [torch.stack([each[part] for each in made]) for part in range(3)], exact

    w13, w13_exact = weights(2 * inner, hidden, experts)
    w2, w2_exact = weights(hidden, inner, experts)
    s13, s13_exact = weights(2 * shared, hidden, 1)
    s2, s2_exact = weights(hidden, shared, 1)
    x = torch.randn(3, hidden).to(BF16)
    ids = torch.tensor([[0, 3], [1, -1], [2, 2]], dtype=torch.int32)
    factors, multiplier = torch.rand(3, 2), torch.rand(3)

    def mlp(token: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        gate, value = (up @ token).chunk(2)
        return down @ (F.silu(gate) * value)

    expected = torch.stack(
        [
            sum(
                (
                    factors[m, s] * mlp(x[m].float(), w13_exact[e], w2_exact[e])
                    for s, e in enumerate(ids[m].tolist())
                    if e >= 0
                ),
                multiplier[m] * mlp(x[m].float(), s13_exact[0], s2_exact[0]),
            )
            for m in range(3)
        ]
    )
    folded = SharedExpert(s13[0][0], s13[1][0], s13[2][0], s2[0][0], s2[1][0], s2[2][0], multiplier)
    out = moe_decode(x, w13[0], w13[1], w13[2], w2[0], w2[1], w2[2], ids, factors, shared=folded)
    assert close(out, expected)


@pytest.mark.parametrize("plus_one", [False, True])
def test_routing(plus_one: bool) -> None:
    tokens, hidden, experts, topk = 3, 256, 16, 4
    x, residual, norm = (torch.randn(*shape).to(BF16) for shape in ((3, 256), (3, 256), (256,)))
    gate, shared_gate = torch.randn(experts, hidden).to(BF16), torch.randn(1, hidden).to(BF16)
    gate[7] = gate[3]  # a tie
    ids = torch.empty(tokens, topk, dtype=torch.int32)
    weights, multiplier = torch.empty(tokens, topk), torch.empty(tokens)
    normed, total = torch.empty_like(x), torch.empty_like(x)
    workspace = torch.zeros(64, dtype=torch.uint8)
    torch.ops.gb10.route_experts(
        *(x, residual, norm, 1e-6, plus_one, gate, shared_gate, True),
        *(workspace, ids, weights, multiplier, normed, total),
    )
    assert torch.equal(total, x + residual)
    factor = norm.float() + plus_one
    expected = total.float() * (total.float().square().mean(-1, keepdim=True) + 1e-6).rsqrt() * factor
    assert torch.equal(normed, expected.to(BF16))
    logits = F.linear(normed, gate).float()
    picked = logits.softmax(-1).gather(1, ids.long())
    assert torch.equal(picked.sort(-1, descending=True).values, logits.softmax(-1).topk(topk).values)
    assert torch.allclose(weights, picked / picked.sum(-1, keepdim=True))
    assert torch.allclose(multiplier, F.linear(normed, shared_gate).float().sigmoid().flatten())
    for row in ids.tolist():
        assert 7 not in row or (3 in row and row.index(3) < row.index(7))


@pytest.mark.parametrize("interleaved", [False, True])
def test_gated_delta_net_over_several_steps(interleaved: bool) -> None:
    """Token by token against the forward pass over the sequence; another slot and an empty one stay."""
    key_heads, value_heads, dk, dv, steps = 2, 4, 64, 64, 5
    keys, values = key_heads * dk, value_heads * dv
    rows = torch.randn(steps, 2 * keys + 2 * values + 2 * value_heads).to(BF16)
    conv, log_decay, step_bias = torch.randn(2 * keys + values, 4), torch.randn(4), torch.randn(4)
    norm = torch.rand(dv)
    parts: list[Any] = [
        *(_Columns(0, 2 * keys + 2 * values), _Columns(2 * keys + 2 * values, rows.shape[1])),
        *(conv, log_decay, step_bias, norm, Site("out", None, Recorder()), _Columns(0, values)),
        *(key_heads, value_heads, dk, dv, 1e-6),
    ]
    network = GatedDeltaNet(*parts)
    expected = network(rows.float())
    given = rows if interleaved else _plain_order(rows, key_heads, value_heads, dk, dv)
    conv_state = torch.zeros(3, 2 * keys + values, 3, dtype=BF16)
    state = torch.zeros(3, value_heads, dv, dk)
    conv_state[1] = state[1] = 5.0
    out = torch.empty(2, values, dtype=BF16)
    for row, wanted in zip(given, expected, strict=True):
        out.fill_(torch.nan)
        mixed = torch.stack((row, row))
        torch.ops.gb10.gdn_decode(
            *(mixed, conv_state, conv, None, log_decay, step_bias, state, norm, 1e-6),
            *(torch.tensor([2, 0], dtype=torch.int32), key_heads, value_heads, interleaved, out),
        )
        assert bool((out[1] == 0).all())
        assert bool((out[0].float() - wanted).norm() <= 2e-2 * wanted.norm())
    assert bool((conv_state[0] == 0).all() and (state[0] == 0).all())
    assert bool((conv_state[1] == 5).all() and (state[1] == 5).all())


class _Columns:
    """A linear map that takes columns out."""

    def __init__(self, first: int, last: int) -> None:
        self._range = slice(first, last)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self._range]


def _plain_order(rows: torch.Tensor, key_heads: int, value_heads: int, dk: int, dv: int) -> torch.Tensor:
    """Interleaved columns to q, k, v, z, b, a."""
    group = value_heads // key_heads
    qkvz, ba = rows.split((rows.shape[1] - 2 * value_heads, 2 * value_heads), dim=1)
    by_head = qkvz.reshape(len(rows), key_heads, -1).split((dk, dk, group * dv, group * dv), dim=2)
    gates = ba.reshape(len(rows), key_heads, -1).chunk(2, dim=2)
    return torch.cat([part.flatten(1) for part in (*by_head, *gates)], dim=1)
