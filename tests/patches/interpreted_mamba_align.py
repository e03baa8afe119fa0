"""Run the "align" mode's state copies: vLLM's Triton kernels in the interpreter, or the CPU's stand-ins.

Like ``interpreted_kernels``, the Triton side is for a process of its own.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

BLOCKS, COLUMNS, REQUESTS, BLOCK_SIZE = 40, 6, 3, 4
WIDTH, CHANNELS, HEADS, DIM = 5, 6, 2, 4
ELEMENTS_PER_PAGE = 64


@dataclass(frozen=True)
class Step:
    """What the runner staged for each request: three ints per field."""

    accepted: tuple[int, ...]
    state_column: tuple[int, ...]
    scheduled: tuple[int, ...]
    computed: tuple[int, ...]
    drafted: tuple[int, ...]
    source_column: tuple[int, ...]
    token_bias: tuple[int, ...]


def _page_of(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Return states [BLOCKS, *shape] that lie a page apart, as vLLM's caches do."""
    random = torch.Generator().manual_seed(seed)
    pages = torch.randn(BLOCKS, ELEMENTS_PER_PAGE, generator=random).to(dtype)
    strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    return pages.as_strided((BLOCKS, *shape), (ELEMENTS_PER_PAGE, *strides))


def copy_states(
    kernel: str, step: Step, dim_first: bool, triton: bool
) -> tuple[list[npt.NDArray[np.float32]], list[int]]:
    """Run ``kernel`` for ``step`` on two groups with a conv and a temporal state each.

    Returns the states afterwards (float32, [BLOCKS, ...]) and the accepted counts that come out.
    """
    conv = (CHANNELS, WIDTH) if dim_first else (WIDTH, CHANNELS)
    states = [
        _page_of(conv, torch.bfloat16, 1),
        _page_of((HEADS, DIM, DIM), torch.float32, 2),
        _page_of(conv, torch.bfloat16, 3),
        _page_of((HEADS, DIM, DIM), torch.float32, 4),
    ]
    is_conv = [True, False, True, False]
    free = torch.randperm(BLOCKS - 1, generator=torch.Generator().manual_seed(9)) + 1
    tables = [
        free[: REQUESTS * COLUMNS].reshape(REQUESTS, COLUMNS).to(torch.int32),
        free[-REQUESTS * COLUMNS :].reshape(REQUESTS, COLUMNS).to(torch.int32),
    ]
    inner = [s.stride(1) if c else s[0].numel() for s, c in zip(states, is_conv, strict=True)]
    layout = [
        torch.tensor([table.data_ptr() for table in tables], dtype=torch.int64),
        COLUMNS,
        torch.tensor([s.data_ptr() for s in states], dtype=torch.int64),
        torch.tensor([s.stride(0) * s.element_size() for s in states], dtype=torch.int64),
        torch.tensor([s.element_size() for s in states], dtype=torch.int32),
        torch.tensor(
            [1 if c and dim_first else n for n, c in zip(inner, is_conv, strict=True)], dtype=torch.int64
        ),
        torch.tensor([WIDTH if c else 0 for c in is_conv], dtype=torch.int32),
        torch.tensor([0, 0, 1, 1], dtype=torch.int32),
        torch.tensor([CHANNELS if c and dim_first else 0 for c in is_conv], dtype=torch.int32),
        torch.tensor(
            [s.stride(1) * s.element_size() if c else 0 for s, c in zip(states, is_conv, strict=True)],
            dtype=torch.int64,
        ),
    ]

    def per_request(values: tuple[int, ...]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    accepted_out = per_request(step.accepted)
    options: dict[str, Any] = {
        "COPY_BLOCK_SIZE": 16,
        "CONV_STATE_DIM_FIRST": dim_first,
        "HAS_IDX_MAPPING": False,
        "TEMPORAL_TILES": 2,
    }
    if kernel == "precopy_mamba_align_fused_kernel":
        staged = (step.state_column, step.source_column, step.token_bias)
        arguments = [*map(per_request, staged), *layout, None, REQUESTS]
    else:
        fields = (step.accepted, step.state_column, step.scheduled, step.computed, step.drafted)
        arguments = [*map(per_request, fields), *layout, accepted_out, None, REQUESTS]
        options["block_size"] = BLOCK_SIZE
    if triton:
        module = importlib.import_module("vllm.v1.worker.mamba_utils")
        getattr(module, kernel)[(REQUESTS, len(states), 2)](*arguments, **options)
    else:
        module = importlib.import_module("vllm.utils.cpu_mamba_align")
        getattr(module, kernel)(*arguments, **options)
    return [state.float().numpy() for state in states], accepted_out.tolist()
