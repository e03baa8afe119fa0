"""NVFP4 linear layers on a GPU: what runs for how many tokens, and what is kept of a layer; on stand-ins."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from reference import cpu_operators

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.model_executor.kernels import linear as vllm_kernels

from gb10 import nvfp4
from gb10.vllm_plugin.cuda import dequant, dispatch, linear
from gb10.vllm_plugin.scales.weights import PartScales

BF16 = torch.bfloat16
ROWS, COLUMNS = 200, 128


@pytest.fixture(autouse=True)
def operators() -> cpu_operators.Library:
    torch.manual_seed(0)
    library = cpu_operators.install()
    linear.define()
    library.calls.clear()
    return library


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of compute capability 9.0, as far as our classes ask."""
    _pretend(monkeypatch, 90)


def _pretend(monkeypatch: pytest.MonkeyPatch, capability: int) -> None:
    platform = SimpleNamespace(
        is_cuda=lambda: True,
        has_device_capability=lambda least: capability >= least,
        is_device_capability_family=lambda family: capability // 10 == family // 10,
    )
    monkeypatch.setattr(linear, "current_platform", platform)


def layer_of(weight: torch.Tensor, dtype: torch.dtype = BF16) -> Any:
    """A layer as a method leaves it to its kernel, and the values that it stands for."""
    held = nvfp4.quantize(weight)
    layer: Any = torch.nn.Module()
    for name, tensor in (
        ("weight", held.packed),
        ("weight_scale", held.block_scales),
        ("weight_global_scale", held.global_scale),
    ):
        layer.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
    layer.params_dtype = dtype
    return layer, nvfp4.dequantize(*held)


def close(out: torch.Tensor, exact: torch.Tensor, limit: float = 5e-3) -> bool:
    return bool((out.double() - exact.double()).norm() <= limit * exact.double().norm())


@pytest.mark.parametrize("tokens", [0, 1, 16, 17, 40, 64, 65, 300])
def test_what_runs_is_decided_by_the_number_of_tokens(
    tokens: int, ours: None, operators: cpu_operators.Library
) -> None:
    layer, exact = layer_of(torch.randn(ROWS, COLUMNS))
    kernel = linear.NativeLinearKernel(vllm_kernels.NvFp4LinearLayerConfig())
    kernel.process_weights_after_loading(layer)
    x, bias = torch.randn(2, tokens // 2 + tokens % 2, COLUMNS).to(BF16), torch.randn(ROWS).to(BF16)
    x = x.reshape(-1, COLUMNS)[:tokens]
    out = kernel.apply_weights(layer, x, bias)
    assert out.shape == (tokens, ROWS) and out.dtype == BF16
    assert close(out, x.float() @ exact.T + bias.float())
    pieces = [min(16, tokens - first) for first in range(0, tokens, 16)] if tokens <= 64 else []
    assert operators.calls == [("nvfp4_gemv", piece) for piece in pieces]


def test_a_batch_of_sequences_keeps_its_shape(ours: None) -> None:
    layer, exact = layer_of(torch.randn(ROWS, COLUMNS))
    kernel = linear.NativeLinearKernel(vllm_kernels.NvFp4LinearLayerConfig())
    kernel.process_weights_after_loading(layer)
    x = torch.randn(3, 5, COLUMNS).to(BF16)
    out = kernel.apply_weights(layer, x)
    assert out.shape == (3, 5, ROWS) and close(out, x.float() @ exact.T)


def test_the_weight_is_held_once_and_as_it_came(ours: None) -> None:
    layer, _ = layer_of(torch.randn(ROWS, COLUMNS))
    before = {name: tensor.clone() for name, tensor in layer.named_parameters()}
    kernel = linear.NativeLinearKernel(vllm_kernels.NvFp4LinearLayerConfig())
    kernel.process_weights_after_loading(layer)
    native: linear.Native = layer.gb10_native
    assert native.codes.data_ptr() == layer.weight.data_ptr()
    assert native.scales.data_ptr() == layer.weight_scale.data_ptr()
    assert native.global_scale.shape == (1,) and not native.swizzled
    assert torch.equal(native.codes, before["weight"])
    assert torch.equal(native.scales.view(torch.uint8), before["weight_scale"].view(torch.uint8))


@pytest.mark.parametrize("tokens", [3, 100])
def test_parts_with_scales_of_their_own(tokens: int, ours: None) -> None:
    layer, exact = layer_of(torch.randn(ROWS, COLUMNS))
    scales = layer.weight_global_scale.data * torch.tensor([1.0, 0.37, 2.1])
    rows = [100, 60, 40]
    ratio = (scales / layer.weight_global_scale.data).repeat_interleave(torch.tensor(rows))
    layer.weight_global_scale.data = scales.max()
    inner = linear.NativeLinearKernel(vllm_kernels.NvFp4LinearLayerConfig())
    kernel = PartScales(inner, scales, rows)
    kernel.process_weights_after_loading(layer)
    x = torch.randn(tokens, COLUMNS).to(BF16)
    assert close(kernel.apply_weights(layer, x), x.float() @ (exact * ratio[:, None]).T)


class _Stock:
    """In the place of vLLM's Marlin or CUTLASS kernel."""

    def __init__(self, config: Any) -> None:
        self.processed: list[Any] = []

    def process_weights_after_loading(self, layer: Any) -> None:
        self.processed.append(layer)

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> str:
        return "stock"


@pytest.mark.parametrize(("columns", "dtype"), [(96, BF16), (32832, BF16), (128, torch.float32)])
def test_a_layer_that_the_kernels_do_not_take_is_stock(
    columns: int, dtype: torch.dtype, ours: None, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(linear, "MarlinNvFp4LinearKernel", _Stock)
    layer, _ = layer_of(torch.randn(16, columns), dtype)
    kernel = linear.NativeLinearKernel(vllm_kernels.NvFp4LinearLayerConfig())
    kernel.process_weights_after_loading(layer)
    assert kernel.apply_weights(layer, torch.zeros(2, columns)) == "stock"
    assert not hasattr(layer, "gb10_native")
    assert "vLLM's Marlin" in caplog.text


@pytest.mark.parametrize("tokens", [16, 17])
def test_w4a4_layers_go_to_cutlass_above_16_tokens(
    tokens: int, monkeypatch: pytest.MonkeyPatch, operators: cpu_operators.Library
) -> None:
    from vllm import _custom_ops

    calls = []

    def quant(x: torch.Tensor, scale: torch.Tensor, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(("quantised", float(scale), named))
        return x, torch.ones(1)

    def product(x: torch.Tensor, codes: torch.Tensor, a: Any, b: Any, alpha: Any, dtype: Any) -> torch.Tensor:
        calls.append(("multiplied", float(alpha), dtype))
        return torch.zeros(x.shape[0], codes.shape[0], dtype=dtype)

    monkeypatch.setattr(_custom_ops, "scaled_fp4_quant", quant)
    monkeypatch.setattr(_custom_ops, "cutlass_scaled_fp4_mm", product)
    held = nvfp4.quantize(torch.randn(ROWS, COLUMNS))
    x = torch.randn(tokens, COLUMNS).to(BF16)
    swizzled = nvfp4.swizzle_128x4(held.block_scales)
    scales = (held.global_scale.reshape(1), None, True, torch.tensor(7.0), torch.tensor(3.0))
    out = torch.ops.gb10.native_linear(x, held.packed, swizzled, *scales)
    if tokens <= 16:
        assert operators.calls == [("nvfp4_gemv", tokens)] and not calls
        assert close(out, x.float() @ nvfp4.dequantize(*held).T)
    else:
        assert [call[:2] for call in calls] == [("quantised", 7.0), ("multiplied", 3.0)]
        assert not operators.calls and not out.any()


@pytest.mark.parametrize("swizzled", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_products_of_dequantised_pieces(swizzled: bool, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dequant, "SCRATCH", 128 * 2 * COLUMNS)  # rows: 128 and 72
    held = nvfp4.quantize(torch.randn(ROWS, COLUMNS))
    factors = torch.rand(ROWS) if own else held.global_scale.reshape(1)
    exact = nvfp4.dequantize(held.packed, held.block_scales, factors if own else held.global_scale)
    scales = nvfp4.swizzle_128x4(held.block_scales) if swizzled else held.block_scales
    x, bias = torch.randn(70, COLUMNS).to(BF16), torch.randn(ROWS).to(BF16)
    out = dequant.product(x, held.packed, scales, factors, bias, swizzled=swizzled)
    assert close(out, x.float() @ exact.T + bias.float())


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
@pytest.mark.parametrize("biased", [False, True])
def test_a_remembered_scale_is_for_the_product(
    biased: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 the values are exact then. What that brings on a GPU is in tests/gpu."""
    held = nvfp4.quantize(torch.randn(ROWS, COLUMNS))
    x, bias = torch.randn(70, COLUMNS).to(dtype), torch.randn(ROWS).to(dtype) if biased else None
    factor, values = held.global_scale.reshape(1), dequant.values
    seen: list[Any] = []

    def watched(codes: Any, scales: Any, factors: Any, *rest: Any) -> torch.Tensor:
        seen.append(factors)
        return values(codes, scales, factors, *rest)

    dequant.remember(factor)
    monkeypatch.setattr(dequant, "values", watched)
    out = dequant.product(x, held.packed, held.block_scales, factor, bias)
    assert seen == [None if dtype is BF16 else factor]
    assert close(out, x.float() @ nvfp4.dequantize(*held).T + (0 if bias is None else bias.float()))


def test_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours unless the user asks for another, or for results that do not depend on the number of tokens."""
    monkeypatch.setattr(vllm_kernels.CutlassNvFp4LinearKernel, "is_supported", lambda *_: (True, None))
    backend = "auto"
    monkeypatch.setattr(vllm_kernels, "_get_linear_backend", lambda quantization: backend)
    for capability, quantised, weight_only in (
        (90, linear.NativeLinearKernel, linear.NativeLinearKernel),
        (121, linear.CutlassLinearKernel, linear.NativeLinearKernel),
        (89, None, None),
    ):
        _pretend(monkeypatch, capability)
        assert (linear._choose(False), linear._choose(True)) == (quantised, weight_only)
    _pretend(monkeypatch, 90)
    monkeypatch.setattr("vllm.envs.VLLM_BATCH_INVARIANT", True)
    assert linear._choose(False) is None
    monkeypatch.setattr("vllm.envs.VLLM_BATCH_INVARIANT", False)
    backend = "marlin"
    assert linear._choose(False) is None


def test_dispatches_are_recorded(ours: None) -> None:
    held = nvfp4.quantize(torch.randn(ROWS, COLUMNS))
    for tokens in (1, 100):
        torch.ops.gb10.native_linear(
            torch.randn(tokens, COLUMNS).to(BF16),
            held.packed,
            held.block_scales,
            held.global_scale.reshape(1),
            None,
            False,
            None,
            None,
        )
    found = {(one.operation, one.kernel) for one in dispatch.record()}
    assert {("nvfp4_linear", "nvfp4_gemv"), ("nvfp4_linear", "dequantised_nvfp4")} <= found
