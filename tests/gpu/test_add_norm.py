"""Residual + RMSNorm for many tokens (gb10.vllm_plugin.cuda.layers.norm) against float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

EPSILON = 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize(("tokens", "columns"), [(1, 256), (17, 2048), (300, 1536), (4096, 2048)])
def test_against_float64(tokens: int, columns: int, plus_one: bool, dtype: torch.dtype) -> None:
    from gb10.vllm_plugin.cuda.layers.norm import add_norm

    x = torch.randn(tokens, columns, device="cuda", dtype=dtype)
    residual = torch.randn(tokens, columns, device="cuda", dtype=dtype) * 3
    weight = torch.randn(columns, device="cuda", dtype=dtype) * 0.2 + (0 if plus_one else 1)
    before = x.clone(), residual.clone()
    normed, total = add_norm(x, residual, weight, EPSILON, plus_one)
    exact = x.double() + residual.double()
    scaled = exact * (exact.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
    expected = scaled * (weight.double() + plus_one)
    # Without plus_one vLLM rounds twice: before the weight and after.
    unit = torch.finfo(dtype).eps * (0.51 if plus_one else 1.02)
    assert torch.equal(total, exact.to(dtype))
    assert bool(((normed.double() - expected).abs() <= unit * expected.abs() + 1e-6).all())
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])


def test_two_calls_give_the_same_bits() -> None:
    from gb10.vllm_plugin.cuda.layers.norm import add_norm

    x, residual = torch.randn(2, 100, 2048, device="cuda", dtype=torch.bfloat16).unbind(0)
    weight = torch.randn(2048, device="cuda", dtype=torch.bfloat16)
    first, second = (add_norm(x, residual, weight, EPSILON, True) for _ in range(2))
    assert all(map(torch.equal, first, second))
