"""W4A16 for decode: up to 16 tokens times an NVFP4 weight, at the speed of memory (kernels/nvfp4_gemv)."""

from __future__ import annotations

import torch

from gb10.kernels.library import load


def nvfp4_gemv(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    global_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    swizzled: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Give ``y[m, n] = sum over k of x[m, k] * w[n, k] (+ bias[n])``, with
    ``w[n, k] = e2m1 * scales[n, k // 16] * global_scale``.

    ``x`` is bfloat16 or float16 ``[M, K]``, M from 1 to 16, K a multiple of 64, at most 32768. ``weight`` is
    uint8 ``[N, K / 2]`` with two codes a byte, the even k in the low nibble; N is any number from 1.
    ``scales`` is float8_e4m3fn, finite and not negative: ``[N, K / 16]``, or with ``swizzled`` what
    ``gb10.nvfp4.swizzle_128x4`` makes of that, ``[N rounded up to 128, K / 16]``. ``global_scale`` is one
    float32 number, ModelOpt's ``weight_scale_2``. ``bias`` (``[N]``) and ``out`` (``[M, N]``) have the dtype
    of ``x``. All are contiguous and on one CUDA device; ``x`` and ``weight`` begin at a multiple of 16 bytes.

    Sums are FP32; two calls give the same bits. The kernel reads ``weight`` and ``scales`` while the kernel
    before it in the stream still runs: after they were written, synchronise once before the first call (a
    model does so when its weights are loaded). Bad arguments give RuntimeError, which names the argument.
    """
    load()
    if out is None:
        out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    torch.ops.gb10.nvfp4_gemv(x, weight, scales, global_scale, bias, swizzled, out)
    return out
