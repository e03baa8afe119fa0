"""An NVFP4 weight as bfloat16 or float16, at the speed of memory (kernels/nvfp4_dequantize)."""

from __future__ import annotations

import torch

from gb10.kernels.library import load


def nvfp4_dequantize(
    weight: torch.Tensor,
    scales: torch.Tensor,
    factors: torch.Tensor | None = None,
    *,
    swizzled: bool = False,
    out: torch.Tensor,
) -> torch.Tensor:
    """Fill ``out[n, k]`` with ``e2m1 * scales[n, k // 16] (* factor)``, and give it.

    ``weight`` and ``scales`` are those of ``nvfp4_gemv``, without its limit of K: K is a multiple of 64.
    ``factors`` is float32: the global scale, one number, or one for each row, ``[N]``. ``out`` is bfloat16
    or float16 ``[N, K]``. Without factors the result is exact, with them it is rounded once. All are
    contiguous and on one CUDA device; ``weight`` and ``out`` begin at a multiple of 16 bytes. Bad arguments
    give RuntimeError, which names the argument.
    """
    load()
    torch.ops.gb10.nvfp4_dequantize(weight, scales, factors, swizzled, out)
    return out
