"""One matrix times the tokens of a step, as operators that torch.compile does not look into.

    gb10::dense_fp8(Tensor x, Tensor codes, Tensor scales, Tensor? bias, str operation) -> Tensor
    gb10::dense_nvfp4(Tensor x, Tensor codes, Tensor scales, Tensor global_scale, Tensor? bias, str operation)
        -> Tensor

x is bfloat16 or float16 ``[M, K]``; the result ``[M, N]`` has its dtype. What runs is decided by M, inside:

| M | FP8 | NVFP4 |
|---|---|---|
| to 16 | `fp8_gemv` (W8A16) | `nvfp4_gemv` (W4A16) |
| to 64 | as more | `nvfp4_gemv` in pieces of 16: reads less than the dequantised matrix would be |
| more | vLLM's scaled_mm (W8A8); where there is none, dequantised | dequantised (W4A16) |

FP8 at M above 16 has a dynamic scale for each token and rounds activations to E4M3, as vLLM's own FP8 does.
W4A4, which 12.x could run here, would cost as much accuracy again as NVFP4 weights do (docs/quality.md), so
NVFP4 keeps its activations. Dequantised is `_SCRATCH` bytes of rows at a time, from torch's allocator: it
counts as activations in vLLM's profile.

`operation` is what the record of dispatches calls it: dense or lm_head.
"""

import functools

import torch
import torch.nn.functional as F

from gb10.vllm_plugin.cuda import dequant, dispatch

DECODE = 16
"""Tokens that a GEMV takes at once."""

NVFP4_PIECES = 64
"""Up to so many tokens NVFP4 goes through its GEMV in pieces."""

_SCRATCH = 64 << 20

Tensor = torch.Tensor


def dense_fp8(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, operation: str) -> Tensor:
    """See the module."""
    x = _plain(x)
    tokens = x.shape[0]
    if tokens <= DECODE:
        out = x.new_empty(tokens, codes.shape[0])
        if tokens:
            dispatch.ran(operation, "fp8_gemv", tokens)
            torch.ops.gb10.fp8_gemv(x, codes, scales, bias, out)
        return out
    if _scaled_mm(x.device) and codes.shape[0] % 16 == 0:
        dispatch.ran(operation, "scaled_mm_fp8", tokens)
        from vllm import _custom_ops as ops

        quantised, token_scales = ops.scaled_fp8_quant(x, use_per_token_if_dynamic=True)
        product: Tensor = ops.cutlass_scaled_mm(
            quantised, codes.t(), token_scales, scales[:, None], x.dtype, bias
        )
        return product
    dispatch.ran(operation, "dequantised_fp8", tokens)
    out = x.new_empty(tokens, codes.shape[0])
    for rows in _pieces(codes.shape[0], codes.shape[1]):
        values = (codes[rows].float() * scales[rows, None]).to(x.dtype)
        out[:, rows] = F.linear(x, values, None if bias is None else bias[rows])
    return out


def dense_nvfp4(
    x: Tensor, codes: Tensor, scales: Tensor, global_scale: Tensor, bias: Tensor | None, operation: str
) -> Tensor:
    """See the module."""
    x = _plain(x)
    tokens = x.shape[0]
    if tokens <= NVFP4_PIECES:
        out = x.new_empty(tokens, codes.shape[0])
        if tokens:
            dispatch.ran(operation, "nvfp4_gemv", tokens)
        for first in range(0, tokens, DECODE):
            piece = slice(first, first + DECODE)
            torch.ops.gb10.nvfp4_gemv(x[piece], codes, scales, global_scale, bias, False, out[piece])
        return out
    dispatch.ran(operation, "dequantised_nvfp4", tokens)
    return dequant.product(x, codes, scales, global_scale, bias)


def _pieces(rows: int, columns: int) -> list[slice]:
    step = max(1, _SCRATCH // (2 * columns))
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def _plain(x: Tensor) -> Tensor:
    """``x`` as the kernels take it: contiguous, from a multiple of 16 bytes."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


@functools.cache
def _scaled_mm(device: torch.device) -> bool:
    """Whether vLLM has an FP8 product with a scale for each token and row on this device."""
    if device.type != "cuda":
        return False
    from vllm.model_executor.layers.quantization.utils.w8a8_utils import cutlass_fp8_supported

    return bool(cutlass_fp8_supported())


_library: torch.library.Library | None = None


def install() -> None:
    """Define the operators; a second call does nothing."""
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("gb10", "FRAGMENT")

    def fake(x: Tensor, codes: Tensor, *_: object) -> Tensor:
        return x.new_empty(x.shape[0], codes.shape[0])

    for name, function, scale in (
        ("dense_fp8", dense_fp8, ""),
        ("dense_nvfp4", dense_nvfp4, "Tensor global_scale, "),
    ):
        _library.define(
            f"{name}(Tensor x, Tensor codes, Tensor scales, {scale}Tensor? bias, str operation) -> Tensor"
        )
        # For CUDA, and for the CPU, where tests run it with stand-ins for the kernels.
        _library.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"gb10::{name}", fake, lib=_library)
