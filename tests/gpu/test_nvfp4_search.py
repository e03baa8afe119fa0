"""gb10::nvfp4_search on a GPU: the bits of gb10.nvfp4.quantize_searched, and what a load makes of it."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gb10.kernels import nvfp4_search as search  # noqa: E402
from gb10.nvfp4 import global_scale_for, power_of_two, quantize_searched  # noqa: E402
from gb10.vllm_plugin.cuda.requant import convert  # noqa: E402


def weight_of(rows: int, k: int, dtype: Any, device: Any) -> Any:
    """Heavy-tailed numbers, with a block of zeros of both signs and both ends of the range."""
    weight = torch.randn(rows, k, device=device) ** 3 * 0.02
    weight[0, :16] = torch.tensor([0.0, -0.0] * 8, device=device)
    weight[-1, -16:] = torch.logspace(-7, 4, 16, device=device)
    return weight.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize(("rows", "k"), [(1, 16), (12352, 2048), (300, 4112), (70000, 64)])
@pytest.mark.parametrize("factor", [None, 0.37, 900.0])
def test_the_bits_of_the_search(
    rows: int, k: int, factor: float | None, dtype: Any, device: Any, poisoned: Any
) -> None:
    weight = weight_of(rows, k, dtype, device)
    usual = global_scale_for(float(weight.float().abs().max()))
    scale = (power_of_two(usual) if factor is None else usual * factor).reshape(1).to(device)
    codes = torch.full((rows, k // 2), 0xA5, dtype=torch.uint8, device=device)
    scales = torch.full((rows, k // 16), 0xA5, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn)
    squares = search.nvfp4_search(weight, scale, codes, scales)
    wanted = quantize_searched(weight, scale)
    assert torch.equal(codes, wanted.packed)
    assert torch.equal(scales.view(torch.uint8), wanted.block_scales.view(torch.uint8))
    norm = weight.double().square().sum(dim=1)
    assert torch.allclose(squares[:, 1], norm, rtol=1e-6, atol=0)
    again = search.nvfp4_search(weight, scale, codes, scales)
    assert torch.equal(squares, again)


def test_a_load_takes_it(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weight_of(1000, 512, torch.bfloat16, device)
    fast, fast_error = convert.to_nvfp4(weight)
    monkeypatch.setattr(convert, "takes", lambda _: False)
    slow, slow_error = convert.to_nvfp4(weight)
    assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(fast, slow, strict=True))
    assert fast_error.relative == pytest.approx(slow_error.relative, rel=1e-6)
