"""A mixture-of-experts layer for many tokens, from the weights of decode (kernels/moe_grouped)."""

from __future__ import annotations

from typing import Unpack

import torch

from gb10.kernels.library import load
from gb10.kernels.moe_decode import Options, option_arguments

_SMALL_TILE, _LARGE_TILE = 16, 64
"""Tokens of a tile, as kernels/moe_grouped/moe_grouped.h has them."""


def workspace_bytes(
    tokens: int, topk: int, experts: int, hidden: int, intermediate: int, shared_intermediate: int
) -> int:
    """Bytes of workspace for a call of that size; ``shared_intermediate`` is 0 without a shared expert.

    ``experts`` are the local ones. Most of it is what the pairs of token and expert give, in two bytes each.
    """

    def up(count: int, step: int) -> int:
        return -(-count // step) * step

    pairs = tokens * topk
    shared = tokens if shared_intermediate else 0
    tile = _SMALL_TILE if pairs <= _SMALL_TILE * experts else _LARGE_TILE
    tiles = (pairs + min(experts, pairs) * (tile - 1)) // tile + up(shared, tile) // tile
    act = 2 * (pairs * intermediate + tokens * shared_intermediate)
    return 16 * (tiles + 1) + up(4 * pairs, 16) + up(act, 16) + 2 * hidden * (pairs + shared)


def moe_grouped(
    x: torch.Tensor,
    w13: torch.Tensor,
    w13_scales: torch.Tensor,
    w13_global: torch.Tensor,
    w2: torch.Tensor,
    w2_scales: torch.Tensor,
    w2_global: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    *,
    workspace: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    **options: Unpack[Options],
) -> torch.Tensor:
    """Give what ``moe_decode`` gives, of the same arguments, for 1 to 32768 tokens.

    The weights are multiplied in the dtype of ``x`` with FP32 sums; what comes out of the activation, and
    what each expert gives a token, are rounded to that dtype. ``workspace``: uint8, at least
    ``workspace_bytes``.
    Two calls give the same bits. Bad arguments give RuntimeError, which names the argument.
    """
    load()
    if out is None:
        out = torch.empty_like(x)
    if workspace is None:
        shared = options.get("shared")
        inner, shared_inner = 2 * w2.shape[-1], 2 * shared.w2.shape[-1] if shared else 0
        tokens, topk = topk_ids.shape
        size = workspace_bytes(tokens, topk, w2.shape[0], x.shape[1], inner, shared_inner)
        workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
    weights = (w13, w13_scales, w13_global, w2, w2_scales, w2_global)
    torch.ops.gb10.moe_grouped(
        x, *weights, topk_ids, topk_weights, *option_arguments(**options), workspace, out
    )
    return out
