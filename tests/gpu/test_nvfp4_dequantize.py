"""gb10::nvfp4_dequantize on a GPU: the bits of gb10.nvfp4.dequantize."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gb10.kernels.nvfp4_dequantize import nvfp4_dequantize  # noqa: E402
from gb10.nvfp4 import dequantize, unswizzle_128x4  # noqa: E402
from gb10.vllm_plugin.cuda import dequant  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("swizzled", [False, True], ids=["linear", "swizzled"])
@pytest.mark.parametrize(("rows", "k"), [(1, 64), (300, 192), (2048, 4096)])
@pytest.mark.parametrize("kind", ["exact", "one", "rows"])
def test_every_value(
    rows: int,
    k: int,
    kind: str,
    swizzled: bool,
    dtype: Any,
    device: Any,
    make_weight: Any,
    poisoned: Any,
) -> None:
    weight = make_weight(rows, k, swizzled=swizzled)
    factors = {"exact": None, "one": weight.global_scale, "rows": torch.rand(rows, device=device) * 0.1}[kind]
    out = nvfp4_dequantize(
        weight.packed, weight.scales, factors, swizzled=swizzled, out=poisoned(rows, k, dtype=dtype)
    )
    linear = unswizzle_128x4(weight.scales, rows, k // 16) if swizzled else weight.scales
    scale = 1.0 if factors is None else factors if kind == "rows" else factors[0]
    wanted = dequantize(weight.packed, linear, scale, dtype)
    assert torch.equal(out.view(torch.int16), wanted.view(torch.int16))


@pytest.mark.parametrize("swizzled", [False, True], ids=["linear", "swizzled"])
def test_a_product_in_pieces(
    swizzled: bool, device: Any, make_weight: Any, near: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dequant, "SCRATCH", 300 * 2 * 512)
    weight = make_weight(1000, 512, swizzled=swizzled, scale_bytes=(0x20, 0x48))
    x = torch.randn(100, 512, device=device).to(torch.bfloat16)
    bias = torch.randn(1000, device=device).to(torch.bfloat16)
    out = dequant.product(x, weight.packed, weight.scales, weight.global_scale, bias, swizzled=swizzled)
    assert near(out, x.double() @ weight.exact.T + bias.double(), 5e-3)


@pytest.mark.parametrize("biased", [False, True])
def test_a_remembered_scale_is_rounded_once(biased: bool, device: Any, make_weight: Any) -> None:
    """The result is the exact one to half a step of bfloat16, at most 2**-8 of it."""
    weight = make_weight(512, 1024, scale_bytes=(0x20, 0x48))
    x = torch.randn(100, 1024, device=device).to(torch.bfloat16)
    bias = torch.randn(512, device=device).to(torch.bfloat16) if biased else None
    exact = x.double() @ weight.exact.T + (0 if bias is None else bias.double())
    dequant.remember(weight.global_scale)
    out = dequant.product(x, weight.packed, weight.scales, weight.global_scale, bias)
    assert not ((out.double() - exact).abs() > exact.abs() * 2.0**-8 * 1.01 + 1e-2).any()
