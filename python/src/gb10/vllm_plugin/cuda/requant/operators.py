"""One matrix times the tokens of a step, as operators that torch.compile does not look into.

    gb10::dense_fp8(Tensor x, Tensor codes, Tensor scales, Tensor? bias, str operation) -> Tensor
    gb10::dense_nvfp4(Tensor x, Tensor codes, Tensor scales, Tensor global_scale, Tensor? bias, str operation)
        -> Tensor

x is bfloat16 or float16 ``[M, K]``; the result ``[M, N]`` has its dtype. What runs is decided by M, inside:

| M | FP8 | NVFP4 |
|---|---|---|
| to 16 | `fp8_gemv` (W8A16) | `nvfp4_gemv` (W4A16) |
| to 64 | as more | `nvfp4_gemv` in pieces of 16: reads less than the dequantised matrix would be |
| more | vLLM's scaled_mm (W8A8); where it cannot, dequantised | dequantised (W4A16) |

scaled_mm takes N of 16, 32 and so on. FP8 at M above 16 has a dynamic scale for each token and rounds
activations to E4M3, as vLLM's own FP8 does. W4A4, which 12.x could run here, would cost as much accuracy
again as NVFP4 weights do (docs/quality.md), so NVFP4 keeps its activations. Dequantised are some rows at
a time (`dequant.by_rows`).

`operation` is what the record of dispatches calls it: dense or lm_head.
"""

import functools

import torch
import torch.nn.functional as F

from gb10.vllm_plugin.cuda import dequant, dispatch, products
from gb10.vllm_plugin.cuda.settings import DECODE

Tensor = torch.Tensor


def dense_fp8(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, operation: str) -> Tensor:
    """See the module."""
    x = products.plain(x)
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

    def product_of(rows: slice) -> Tensor:
        values = (codes[rows].float() * scales[rows, None]).to(x.dtype)
        return F.linear(x, values, None if bias is None else bias[rows])

    return dequant.by_rows(x, codes.shape[0], product_of)


def dense_nvfp4(
    x: Tensor, codes: Tensor, scales: Tensor, global_scale: Tensor, bias: Tensor | None, operation: str
) -> Tensor:
    """See the module."""
    return products.w4a16(products.plain(x), codes, scales, global_scale, bias, operation)


@functools.cache
def _scaled_mm(device: torch.device) -> bool:
    """Whether vLLM has an FP8 product with a scale for each token and row on this device."""
    if device.type != "cuda":
        return False
    from vllm.model_executor.layers.quantization.utils.w8a8_utils import cutlass_fp8_supported

    return bool(cutlass_fp8_supported())


def install() -> None:
    """Define the operators; a second call does nothing."""
    products.define(dense_fp8, "Tensor scales, Tensor? bias, str operation")
    products.define(dense_nvfp4, "Tensor scales, Tensor global_scale, Tensor? bias, str operation")
