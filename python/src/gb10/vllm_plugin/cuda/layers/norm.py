"""Residual + RMSNorm for more tokens than the router's launch takes.

In vLLM torch.compile fuses these into one kernel; inside an operator of our own nothing does.
"""

import torch
from vllm.triton_utils import tl, triton

_MOST_COLUMNS = 16384


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm(  # type: ignore[no-untyped-def]  # Triton evaluates annotations
    x,
    residual,
    weight,
    normed,
    residual_out,
    columns,
    epsilon,
    plus_one: tl.constexpr,
    block: tl.constexpr,
):
    """One program a row. As vLLM's own: the sum is normed before it is rounded."""
    row = tl.program_id(0).to(tl.int64) * columns
    index = tl.arange(0, block)
    inside = index < columns
    dtype = x.dtype.element_ty
    left = tl.load(x + row + index, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(residual + row + index, mask=inside, other=0.0).to(tl.float32)
    wide = left + right
    tl.store(residual_out + row + index, wide.to(dtype), mask=inside)
    scaled = wide * tl.rsqrt(tl.sum(wide * wide) / columns + epsilon)
    factor = tl.load(weight + index, mask=inside, other=0.0).to(tl.float32)
    value = scaled * (1.0 + factor) if plus_one else scaled.to(dtype).to(tl.float32) * factor
    tl.store(normed + row + index, value.to(dtype), mask=inside)


def add_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float, plus_one: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give ``(rmsnorm(x + residual) * weight, x + residual)``; with ``plus_one`` times ``1 + weight``.

    ``x`` and ``residual``: bfloat16 or float16 ``[M, H]``, contiguous, on one CUDA device, H at most 16384;
    ``weight``: ``[H]``. Both results are new. Raises ValueError for a wider row.
    """
    rows, columns = x.shape
    if columns > _MOST_COLUMNS:
        raise ValueError(f"rows of {columns} values; at most {_MOST_COLUMNS}")
    normed, residual_out = torch.empty_like(x), torch.empty_like(x)
    block = triton.next_power_of_2(columns)
    _add_norm[(rows,)](
        x,
        residual,
        weight,
        normed,
        residual_out,
        columns,
        epsilon,
        plus_one=plus_one,
        block=block,
        num_warps=min(max(block // 256, 1), 16),
    )
    return normed, residual_out
