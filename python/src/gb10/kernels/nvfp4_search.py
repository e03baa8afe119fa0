"""A weight in 16 bit to NVFP4 with searched block scales, in one launch (kernels/nvfp4_search)."""

from __future__ import annotations

import torch

from gb10.kernels.library import load
from gb10.nvfp4 import BLOCK_SIZE


def nvfp4_search(
    weight: torch.Tensor, global_scale: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """Fill ``codes`` and ``scales`` as `gb10.nvfp4.quantize_searched` does, bit for bit.

    ``weight`` is bfloat16 or float16 ``[N, K]``, K a multiple of 16, finite numbers (not looked at), at a
    multiple of 16 bytes; ``global_scale`` one float32 above zero; ``codes`` uint8 ``[N, K / 2]``; ``scales``
    float8_e4m3fn ``[N, K / 16]``. Gives float64 ``[N, 2]``: the sums over each row of the squared
    differences and of the squares of the weight. All are contiguous and on one CUDA device. Bad arguments
    give RuntimeError, which names the argument.
    """
    load()
    squares = torch.empty((weight.shape[0], 2), dtype=torch.float64, device=weight.device)
    torch.ops.gb10.nvfp4_search(weight, global_scale, codes, scales, squares)
    return squares


def takes(weight: torch.Tensor) -> bool:
    """Whether the kernel takes this weight."""
    return (
        weight.is_cuda
        and weight.dtype in (torch.bfloat16, torch.float16)
        and weight.ndim == 2
        and weight.shape[0] > 0
        and weight.shape[1] >= BLOCK_SIZE
        and weight.shape[1] % BLOCK_SIZE == 0
        and weight.is_contiguous()
        and weight.data_ptr() % 16 == 0
    )
