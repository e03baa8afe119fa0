"""What stands between our kernels in a layer: residual, norm, gate, router. Triton, each one launch.

Where the GPU can (9.0 and newer), each lets the next kernel begin early and waits for the one before it, as
our kernels do, so that the chain is one of dependent launches.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

EPSILON = 1e-6
_EXPERTS_A_PROGRAM = 4
_GATE_BLOCK = 1024


def add_norm(x: torch.Tensor, y: torch.Tensor, total: torch.Tensor, normed: torch.Tensor) -> None:
    """``total = x + y`` and ``normed``, its RMS norm with weight 1. All BF16 ``[tokens, hidden]``."""
    _add_norm[(x.shape[0],)](x, y, total, normed, EPSILON, x.shape[1], **_launch(x))


def gate(z: torch.Tensor, out: torch.Tensor) -> None:
    """``out = v * silu(g)`` of the last two thirds of ``z = [_, v, g]``: in the place of the mixer's core.

    BF16 ``[tokens, 3 * width]`` to ``[tokens, width]``, width a multiple of 1024.
    """
    width = out.shape[1]
    _gate[(out.shape[0], width // _GATE_BLOCK)](z, out, width, _GATE_BLOCK, **_launch(z))


def score(x: torch.Tensor, router: torch.Tensor, logits: torch.Tensor) -> None:
    """``logits = x @ router.T``: BF16 ``[tokens, hidden]`` and ``[rows, hidden]`` to float32."""
    rows = router.shape[0]
    programs = triton.cdiv(rows, _EXPERTS_A_PROGRAM)
    _score[(programs,)](x, router, logits, x.shape[0], rows, x.shape[1], _EXPERTS_A_PROGRAM, **_launch(x))


def choose(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, multiplier: torch.Tensor) -> None:
    """The largest of all logits but the last, their softmax; and the sigmoid of the last.

    float32 ``[tokens, experts + 1]`` to int32 and float32 ``[tokens, topk]``, float32 ``[tokens]``; there are
    a power of two of experts.
    """
    tokens, topk = ids.shape
    padded = triton.next_power_of_2(topk)
    _choose[(tokens,)](logits, ids, weights, multiplier, logits.shape[1] - 1, topk, padded, **_launch(logits))


def _launch(x: torch.Tensor) -> dict[str, Any]:
    dependent = x.is_cuda and torch.cuda.get_device_capability(x.device) >= (9, 0)
    return {"DEPENDENT": dependent, **({"launch_pdl": True} if dependent else {})}


@triton.jit  # type: ignore[untyped-decorator]
def _begin(DEPENDENT: tl.constexpr) -> None:
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm(
    x: tl.tensor,
    y: tl.tensor,
    total: tl.tensor,
    normed: tl.tensor,
    epsilon: tl.tensor,
    HIDDEN: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    at = tl.program_id(0) * HIDDEN + tl.arange(0, HIDDEN)
    _begin(DEPENDENT)
    rounded = (tl.load(x + at).to(tl.float32) + tl.load(y + at).to(tl.float32)).to(tl.bfloat16)
    tl.store(total + at, rounded)
    wide = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide) / HIDDEN + epsilon)
    tl.store(normed + at, (wide * scale).to(tl.bfloat16))


@triton.jit  # type: ignore[untyped-decorator]
def _gate(
    z: tl.tensor, out: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr
) -> None:
    token = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    _begin(DEPENDENT)
    row = z + token * 3 * WIDTH + WIDTH
    v, g = tl.load(row + column).to(tl.float32), tl.load(row + WIDTH + column).to(tl.float32)
    tl.store(out + token * WIDTH + column, (v * g / (1.0 + tl.exp(-g))).to(tl.bfloat16))


@triton.jit  # type: ignore[untyped-decorator]
def _score(
    x: tl.tensor,
    router: tl.tensor,
    logits: tl.tensor,
    tokens: tl.tensor,
    rows: tl.tensor,
    HIDDEN: tl.constexpr,
    ROWS: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, HIDDEN)
    weight = tl.load(router + row[:, None] * HIDDEN + k[None, :], mask=row[:, None] < rows, other=0.0)
    _begin(DEPENDENT)
    for token in range(tokens):
        values = tl.load(x + token * HIDDEN + k).to(tl.float32)
        sums = tl.sum(weight.to(tl.float32) * values[None, :], axis=1)
        tl.store(logits + token * rows + row, sums, mask=row < rows)


@triton.jit  # type: ignore[untyped-decorator]
def _choose(
    logits: tl.tensor,
    ids: tl.tensor,
    weights: tl.tensor,
    multiplier: tl.tensor,
    EXPERTS: tl.constexpr,
    TOPK: tl.constexpr,
    PADDED: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    token = tl.program_id(0)
    expert, slot = tl.arange(0, EXPERTS), tl.arange(0, PADDED)
    _begin(DEPENDENT)
    left = tl.load(logits + token * (EXPERTS + 1) + expert)
    largest = tl.max(left)
    chosen = tl.zeros((PADDED,), tl.int32)
    shares = tl.zeros((PADDED,), tl.float32)
    for k in range(TOPK):
        best = tl.argmax(left, axis=0)
        chosen = tl.where(slot == k, best, chosen)
        shares = tl.where(slot == k, tl.exp(tl.max(left) - largest), shares)
        left = tl.where(expert == best, float("-inf"), left)
    tl.store(ids + token * TOPK + slot, chosen, mask=slot < TOPK)
    tl.store(weights + token * TOPK + slot, shares / tl.sum(shares), mask=slot < TOPK)
    last = tl.load(logits + token * (EXPERTS + 1) + EXPERTS)
    tl.store(multiplier + token, 1.0 / (1.0 + tl.exp(-last)))
