"""NVFP4 linear layers of the checkpoint on a GPU, in its layout: one copy for few and many tokens.

    gb10::native_linear(Tensor x, Tensor codes, Tensor scales, Tensor global_scale, Tensor? bias,
        bool swizzled, Tensor? input_scale, Tensor? alpha) -> Tensor

x is bfloat16 or float16 ``[M, K]``, the result ``[M, N]``. What runs is decided by M, inside:

| M | 9.0, and layers whose activations stay as they are | 12.x, W4A4 |
|---|---|---|
| to 16 | `nvfp4_gemv` (W4A16) | `nvfp4_gemv` |
| to 64 | `nvfp4_gemv` in pieces of 16 | vLLM's CUTLASS (W4A4) |
| more | dequantised, and multiplied in 16 bit (`dequant`) | vLLM's CUTLASS |

On 12.x the block scales are swizzled, and both read the same ones. With ``input_scale`` (the reciprocal of
the checkpoint's) and ``alpha`` (the product of both global scales) the layer is a W4A4 one.

mypy sees vLLM's classes as Any.
"""

import importlib
from typing import Any, NamedTuple

import torch
from vllm.model_executor.kernels import linear as kernels
from vllm.model_executor.kernels.linear import (
    CutlassNvFp4LinearKernel,
    MarlinNvFp4LinearKernel,
    NvFp4LinearKernel,
    NvFp4LinearLayerConfig,
)
from vllm.model_executor.utils import replace_parameter
from vllm.platforms import current_platform

from gb10.kernels import load
from gb10.vllm_plugin.cuda import dequant, dispatch, products
from gb10.vllm_plugin.cuda.settings import DECODE, CudaMode, Part, warn_once

OPERATION = "nvfp4_linear"
"""Of the routing table."""

_UNIT_K, _MOST_K = 64, 32768

_USERS = (
    "vllm.model_executor.kernels.linear",
    "vllm.model_executor.layers.quantization.modelopt",
    "vllm.model_executor.layers.quantization.compressed_tensors.schemes.compressed_tensors_w4a4_nvfp4",
    "vllm.model_executor.layers.quantization.quark.schemes.quark_nvfp4",
)
"""The modules that hold init_nvfp4_linear_kernel by name."""

Tensor = torch.Tensor


class Native(NamedTuple):
    """A layer's weight as the kernels read it. They are the layer's own parameters, not copies."""

    codes: Tensor
    """uint8 ``[N, K / 2]``."""

    scales: Tensor
    """E4M3 ``[N, K / 16]``, or swizzled ``[N rounded up to 128, K / 16]``."""

    global_scale: Tensor
    """float32 ``[1]``."""

    swizzled: bool


def native_linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    global_scale: Tensor,
    bias: Tensor | None,
    swizzled: bool,
    input_scale: Tensor | None,
    alpha: Tensor | None,
) -> Tensor:
    """See the module."""
    x = products.plain(x)
    matrix = (codes, scales, global_scale, bias, OPERATION)
    if input_scale is None:
        return products.w4a16(x, *matrix, swizzled=swizzled)
    if x.shape[0] <= DECODE:
        return products.by_gemv(x, *matrix, swizzled=swizzled)
    dispatch.ran(OPERATION, "cutlass", x.shape[0])
    from vllm._custom_ops import cutlass_scaled_fp4_mm, scaled_fp4_quant

    quantised, token_scales = scaled_fp4_quant(x, input_scale, is_sf_swizzled_layout=True, backend="cutlass")
    product: Tensor = cutlass_scaled_fp4_mm(quantised, codes, token_scales, scales, alpha, x.dtype)
    return product if bias is None else product + bias


def define() -> None:
    """Define the operator; a second call does nothing."""
    products.define(
        native_linear,
        "Tensor scales, Tensor global_scale, Tensor? bias, bool swizzled, Tensor? input_scale, Tensor? alpha",
    )


class NativeLinearKernel(NvFp4LinearKernel):  # type: ignore[misc]
    """Activations stay as they are. A layer that the kernels cannot take is vLLM's Marlin; it is logged."""

    stock: NvFp4LinearKernel | None = None

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        fits = current_platform.is_cuda() and current_platform.has_device_capability(90)
        return fits, None if fits else "needs a GPU of compute capability 9.0"

    @classmethod
    def can_implement(cls, config: NvFp4LinearLayerConfig) -> tuple[bool, str | None]:
        return True, None

    def process_weights_after_loading(self, layer: Any) -> None:
        """Keep the checkpoint's layout: it is the layout that the kernels read."""
        why = refusal(layer)
        if why is not None:
            warn_once(f"gb10: NVFP4 linear layers of {why} are vLLM's Marlin")
            self.stock = MarlinNvFp4LinearKernel(self.config)
            self.stock.process_weights_after_loading(layer)
            return
        for name in ("weight", "weight_scale"):
            replace_parameter(layer, name, getattr(layer, name).data.contiguous())
        replace_parameter(
            layer, "weight_global_scale", layer.weight_global_scale.data.to(torch.float32).reshape(1)
        )
        dequant.remember(layer.weight_global_scale)
        layer.gb10_native = Native(
            layer.weight.data, layer.weight_scale.data, layer.weight_global_scale.data, False
        )

    def apply_weights(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.stock is not None:
            result: Tensor = self.stock.apply_weights(layer, x, bias)
            return result
        out: Tensor = torch.ops.gb10.native_linear(
            x.reshape(-1, x.shape[-1]),
            layer.weight,
            layer.weight_scale,
            layer.weight_global_scale,
            bias,
            layer.gb10_native.swizzled,
            *self.quantised(layer),
        )
        return out.reshape(*x.shape[:-1], out.shape[-1])

    def quantised(self, layer: Any) -> tuple[Tensor | None, Tensor | None]:
        """The scales of quantised activations; none here."""
        return None, None


class CutlassLinearKernel(NativeLinearKernel, CutlassNvFp4LinearKernel):  # type: ignore[misc]
    """W4A4 for many tokens, by vLLM's CUTLASS kernel, from the same copy; layers that it pads are all its."""

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        if not current_platform.is_device_capability_family(120):
            return False, "needs a GPU of compute capability 12.x"
        found: tuple[bool, str | None] = CutlassNvFp4LinearKernel.is_supported(compute_capability)
        return found

    def process_weights_after_loading(self, layer: Any) -> None:
        """Swizzle the block scales."""
        if refusal(layer) is not None or layer.weight.shape[0] % 32:
            self.stock = CutlassNvFp4LinearKernel(self.config)
            self.stock.process_weights_after_loading(layer)
            return
        super().process_weights_after_loading(layer)
        CutlassNvFp4LinearKernel.process_weights_after_loading(self, layer)
        layer.gb10_native = layer.gb10_native._replace(
            codes=layer.weight.data, scales=layer.weight_scale.data, swizzled=True
        )

    def quantised(self, layer: Any) -> tuple[Tensor | None, Tensor | None]:
        return layer.input_global_scale_inv, layer.alpha


def refusal(layer: Any) -> str | None:
    """Why the kernels cannot take a layer, or None."""
    columns, dtype = 2 * layer.weight.shape[1], getattr(layer, "params_dtype", torch.bfloat16)
    if columns % _UNIT_K or columns > _MOST_K:
        return f"{columns} columns (a multiple of {_UNIT_K}, at most {_MOST_K}, would do)"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"{dtype} activations"
    return None


def _choose(use_a16: bool) -> type[NvFp4LinearKernel] | None:
    """Our kernel for NVFP4 layers, unless the user asked for one, or for results that do not depend on M."""
    import vllm.envs

    backend = kernels._get_linear_backend(quantization="nvfp4_w4a16" if use_a16 else "nvfp4_w4a4")
    if backend != "auto" or vllm.envs.VLLM_BATCH_INVARIANT:
        return None
    ours = (NativeLinearKernel,) if use_a16 else (CutlassLinearKernel, NativeLinearKernel)
    return next((kernel for kernel in ours if kernel.is_supported()[0]), None)


def install() -> None:
    """Have vLLM build our kernel for NVFP4 linear layers of all formats, where no other is asked for."""
    if not CudaMode.of_process().has(Part.LINEAR):
        return
    load()
    define()
    stock = kernels.init_nvfp4_linear_kernel

    def init_nvfp4_linear_kernel(use_a16: bool = False) -> NvFp4LinearKernel:
        chosen = _choose(use_a16)
        return stock(use_a16) if chosen is None else chosen(NvFp4LinearLayerConfig())

    for name in _USERS:
        setattr(importlib.import_module(name), stock.__name__, init_nvfp4_linear_kernel)
