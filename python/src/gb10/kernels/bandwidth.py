"""A kernel that only reads: the memory bandwidth that other kernels are measured by (kernels/bandwidth)."""

from __future__ import annotations

import torch

from gb10.kernels.library import load

BLOCKS_PER_SM = 4
"""Of 512 threads each: a full multiprocessor on 8.0, 9.0 and 10.x."""


def read(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Read all of ``x`` and give the exclusive or of its 32-bit words, in parts.

    ``x`` is uint8 ``[bytes]`` on a CUDA device, a multiple of 16 bytes. ``out`` is int32 ``[blocks]``, one
    number for each thread block that shall run; by default four per multiprocessor. The exclusive or of
    ``out`` is that of ``x``. Bad arguments give RuntimeError, which names the argument.
    """
    load()
    if out is None:
        blocks = 1
        if x.is_cuda:
            blocks = BLOCKS_PER_SM * torch.cuda.get_device_properties(x.device).multi_processor_count
        out = torch.empty(blocks, dtype=torch.int32, device=x.device)
    torch.ops.gb10.bandwidth_read(x, out)
    return out
