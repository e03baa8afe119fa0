"""W8A16 for decode: up to 16 tokens times an FP8 weight, at the speed of memory (kernels/fp8_gemv)."""

from __future__ import annotations

import torch

from gb10.kernels.library import load


def fp8_gemv(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Give ``y[m, n] = sum over k of x[m, k] * weight[n, k] * scale(n, k) (+ bias[n])``.

    ``x`` is bfloat16 or float16 ``[M, K]``, M from 1 to 16, K a multiple of 64, at most 1048576. ``weight``
    is float8_e4m3fn ``[N, K]``, any N, without NaN. ``scales`` is float32: one a row, ``[N]`` or ``[N, 1]``,
    or one a block of 128 x 128, ``[ceil(N / 128), ceil(K / 128)]``. ``bias`` (``[N]``) and ``out`` (``[M,
    N]``) have the dtype of ``x``. All are contiguous and on one CUDA device; ``x`` and ``weight`` begin at a
    multiple of 16 bytes.

    Sums are FP32; two calls give the same bits. The kernel reads ``weight``, ``scales`` and ``bias`` while
    the kernel before it in the stream still runs: after they were written, synchronise once before the first
    call (a model does so when its weights are loaded). Bad arguments give RuntimeError, which names the
    argument.
    """
    load()
    if out is None:
        out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    torch.ops.gb10.fp8_gemv(x, weight, scales, bias, out)
    return out
