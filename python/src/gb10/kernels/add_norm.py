"""Residual + RMSNorm of any number of rows, in one launch (kernels/add_norm)."""

from __future__ import annotations

import torch

from gb10.kernels.library import load


def add_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, epsilon: float, *, plus_one: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give ``(rmsnorm(x + residual) * weight, x + residual)``; with ``plus_one`` times ``1 + weight``.

    ``x`` and ``residual``: bfloat16 or float16 ``[M, H]``, contiguous, H a multiple of 8, at most 16384;
    ``weight``: ``[H]``. The sum is normed before it is rounded, and with ``plus_one`` the product is rounded
    once, without it twice: before the weight and after (as vLLM's GemmaRMSNorm and RMSNorm). Both results are
    new; without a residual the second one is x. The weight is read while the kernel before the call still
    runs: after it was written, synchronise once before the first call. Bad arguments give RuntimeError, which
    names the argument.
    """
    load()
    normed = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    torch.ops.gb10.add_norm(
        x, residual, weight, epsilon, plus_one, normed, None if residual is None else total
    )
    return normed, total
