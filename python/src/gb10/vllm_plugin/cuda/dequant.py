"""An NVFP4 matrix times many tokens: dequantised some rows at a time, and multiplied in 16 bit.

The values that are multiplied have the bits of `gb10.nvfp4.dequantize`. What is dequantised at once comes
from torch's allocator: in vLLM's profile it counts as activations, and CUDA graphs keep it in their pool.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from gb10.nvfp4 import dequantize, unswizzle_128x4
from gb10.nvfp4.layout import TILE_ROWS

SCRATCH = 64 << 20
"""Bytes of dequantised rows at a time."""


_NUMBER = "gb10_number"


def remember(scale: torch.Tensor) -> None:
    """Keep a global scale's value on the host, for as long as the tensor lives: `product` rounds once then.

    It waits for the device: to be called when weights are loaded.
    """
    setattr(scale, _NUMBER, float(scale))


def values(
    codes: torch.Tensor,
    scales: torch.Tensor,
    factors: torch.Tensor | None,
    dtype: torch.dtype,
    swizzled: bool = False,
) -> torch.Tensor:
    """The values ``[N, K]`` in ``dtype`` of an NVFP4 matrix, as `gb10.kernels.nvfp4_dequantize` makes them.

    Without ``factors`` without the global scale, and exact. Of tensors on the CPU too.
    """
    rows, half = codes.shape
    if not codes.is_cuda:
        linear = unswizzle_128x4(scales, rows, half // 8) if swizzled else scales
        if factors is None:
            return dequantize(codes, linear, 1.0, dtype)
        return dequantize(codes, linear, factors.reshape(-1)[0] if factors.numel() == 1 else factors, dtype)
    out = torch.empty(rows, 2 * half, dtype=dtype, device=codes.device)
    torch.ops.gb10.nvfp4_dequantize(codes, scales, factors, swizzled, out)
    return out


def product(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    factors: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    swizzled: bool = False,
) -> torch.Tensor:
    """``x @ values.T (+ bias)``, ``[M, N]`` in the dtype of ``x``.

    ``x`` ``[M, K]`` bfloat16 or float16; ``codes`` uint8 ``[N, K / 2]``; ``scales`` E4M3 ``[N, K / 16]``, or
    with ``swizzled`` ``[N rounded up to 128, K / 16]``; ``factors`` float32, the global scale or one for each
    row. With a global scale that is remembered, bfloat16 is rounded once, as in kernels that read four bits;
    else the values are too. (In float16 values without it might be too large for what cuBLAS sums up.)
    """
    number: float | None = getattr(factors, _NUMBER, None) if x.dtype == torch.bfloat16 else None

    def product_of(rows: slice) -> torch.Tensor:
        end = -(-rows.stop // TILE_ROWS) * TILE_ROWS if swizzled else rows.stop
        own = factors if factors.numel() == 1 else factors[rows]
        some = None if bias is None else bias[rows]
        return _multiplied(x, codes[rows], scales[rows.start : end], own, number, some, swizzled)

    return by_rows(x, codes.shape[0], product_of)


def by_rows(x: torch.Tensor, count: int, product_of: Callable[[slice], torch.Tensor]) -> torch.Tensor:
    """``[M, count]`` out of the products of ``x`` ``[M, K]`` with some rows of a matrix after the other.

    As many as `SCRATCH` bytes of 16 bit values have, and whole tiles of swizzled scales.
    """
    step = max(TILE_ROWS, SCRATCH // (2 * x.shape[1]) // TILE_ROWS * TILE_ROWS)
    if count <= step:
        return product_of(slice(0, count))
    out = x.new_empty(x.shape[0], count)
    for first in range(0, count, step):
        rows = slice(first, min(first + step, count))
        out[:, rows] = product_of(rows)
    return out


def _multiplied(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    factors: torch.Tensor,
    number: float | None,
    bias: torch.Tensor | None,
    swizzled: bool,
) -> torch.Tensor:
    if number is None:
        return F.linear(x, values(codes, scales, factors, x.dtype, swizzled), bias)
    exact = values(codes, scales, None, x.dtype, swizzled).T
    if bias is not None:
        return torch.addmm(bias, x, exact, alpha=number)
    out = x.new_empty(x.shape[0], codes.shape[0])
    return torch.addmm(out, x, exact, beta=0.0, alpha=number, out=out)
