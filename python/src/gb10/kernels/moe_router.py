"""The router of a mixture-of-experts layer for decode, residual and norm too (kernels/moe_router)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from gb10.kernels.library import load


class Norm(NamedTuple):
    """The residual and the RMS norm that stand before the router."""

    weight: torch.Tensor
    """``[H]``, the dtype of x."""

    epsilon: float
    plus_one: bool
    """The weight is 1 more than it says (vLLM's GemmaRMSNorm)."""

    residual: torch.Tensor | None = None
    """As x, added to it. None: x alone is normed."""


class Routed(NamedTuple):
    """What ``route_experts`` gives."""

    ids: torch.Tensor
    """int32 ``[M, topk]``, the largest logit first."""

    weights: torch.Tensor
    """float32 ``[M, topk]``."""

    shared_multiplier: torch.Tensor | None
    """float32 ``[M]``; None without a shared gate."""

    normed: torch.Tensor
    """As x: what the experts take. It is x without a norm."""

    residual: torch.Tensor | None
    """As x: the sum of x and the residual. None without a norm."""


def workspace_bytes(tokens: int, experts: int) -> int:
    """Bytes of workspace for a call of that size."""
    return 4 * tokens * -(-experts // 4) * 4


def route_experts(
    x: torch.Tensor,
    gate_weight: torch.Tensor,
    topk: int,
    *,
    renormalise: bool,
    norm: Norm | None = None,
    shared_gate_weight: torch.Tensor | None = None,
    workspace: torch.Tensor | None = None,
) -> Routed:
    """Choose ``topk`` experts for each token: the largest of ``softmax(normed @ gate_weight.T)``.

    ``x``: bfloat16 or float16 ``[M, H]``, M from 1 to 16, H a multiple of 256, at most 8192. ``gate_weight``
    ``[E, H]``, E at most 1024, topk from 1 to 32 and at most E; ``shared_gate_weight``: ``[1, H]`` or
    ``[H]``; all in the dtype of x. With ``norm``, ``r = x + residual``, and ``normed = r / sqrt(mean(r * r) +
    epsilon) * weight`` (weight + 1 with ``plus_one``) in FP32, rounded to the dtype at the end; the residual
    of the result is r, rounded. Without, normed is x.

    Logits are sums in FP32, rounded to the dtype. Equal ones go to the lower expert first. The weights are
    those of the softmax over all experts; with ``renormalise`` their sum is 1. ``shared_multiplier`` is
    ``sigmoid(normed . shared_gate_weight)``.

    ``workspace``: uint8, at least ``workspace_bytes``, zeros before its first call and left as zeros; calls
    on two streams need two. None: a new one. All tensors are contiguous, on one CUDA device, and begin at a
    multiple of 16 bytes. Two calls give the same bits. Weights may be read while the kernel before the call
    still runs: after they were written, synchronise once before the first call. Bad arguments give
    RuntimeError, which names the argument.
    """
    load()
    tokens, device = x.shape[0], x.device
    if workspace is None:
        size = workspace_bytes(tokens, gate_weight.shape[0])
        workspace = torch.zeros(size, dtype=torch.uint8, device=device)
    ids = torch.empty((tokens, topk), dtype=torch.int32, device=device)
    weights = torch.empty((tokens, topk), dtype=torch.float32, device=device)
    multiplier = None
    if shared_gate_weight is not None:
        multiplier = torch.empty(tokens, dtype=torch.float32, device=device)
    normed = None if norm is None else torch.empty_like(x)
    residual_out = None if norm is None else torch.empty_like(x)
    torch.ops.gb10.route_experts(
        x,
        None if norm is None else norm.residual,
        None if norm is None else norm.weight,
        0.0 if norm is None else norm.epsilon,
        norm is not None and norm.plus_one,
        gate_weight,
        shared_gate_weight,
        renormalise,
        workspace,
        ids,
        weights,
        multiplier,
        normed,
        residual_out,
    )
    return Routed(ids, weights, multiplier, x if normed is None else normed, residual_out)
