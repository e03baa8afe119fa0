"""Attention between its projection and the attention itself, in one launch (kernels/attention_front)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from gb10.kernels.library import load


class Heads(NamedTuple):
    """How a row of qkv is cut, and its norms."""

    q_weight: torch.Tensor
    """Of the norm of each head of q: ``[D]``, the dtype of qkv. D is 64, 128 or 256."""

    k_weight: torch.Tensor
    """``[D]``."""

    epsilon: float
    plus_one: bool
    """The norm multiplies by weight + 1 (vLLM's GemmaRMSNorm)."""

    heads: int
    kv_heads: int
    gated: bool
    """Each head of q is followed by its output gate."""


class Rope(NamedTuple):
    """Rotary embedding of the first R numbers of a head, neox style."""

    cos_sin: torch.Tensor
    """``[positions, R]``, the dtype of qkv: cosines, then sines. R is a multiple of D / 16, at most D."""

    positions: torch.Tensor
    """int64 or int32 ``[M]``; or ``[3, M]``: time, height and width."""

    height_section: int = 0
    width_section: int = 0
    """With three rows: how many of the R / 2 angles go by height, by width (vLLM's interleaved MRoPE)."""


class Cache(NamedTuple):
    """A paged KV cache, and where the tokens go in it."""

    key: torch.Tensor
    """``[blocks, block size, kv_heads, D]`` in any strides but the last: the dtype of qkv, or uint8 or
    float8_e4m3fn for E4M3."""

    value: torch.Tensor
    """The same."""

    slots: torch.Tensor
    """int64 ``[M or fewer]``. Slots that do not exist (-1), and tokens without one, write nothing."""

    k_scale: torch.Tensor | None = None
    """float32, one element, with E4M3: what is stored is key / k_scale."""

    v_scale: torch.Tensor | None = None


def attention_front(
    qkv: torch.Tensor,
    heads: Heads,
    rope: Rope,
    *,
    query: torch.Tensor,
    key_out: torch.Tensor | None = None,
    cache: Cache | None = None,
    q_scale: torch.Tensor | None = None,
) -> None:
    """Split, norm of each head, rotary embedding, and q, k and v where the attention wants them.

    ``qkv``: bfloat16 or float16 ``[M, columns]``, M from 1 to 1048576; its rows may lie apart by a
    multiple of 8. For each head q (and its gate), then k of all, then v; at most 1024 heads of q, k and v
    together. ``query``: written, ``[M, heads * D]`` of the same dtype, or float8_e4m3fn of
    q * (1 / q_scale). ``key_out``: written, ``[M, kv_heads * D]``. Rounded where vLLM 0.32.0 rounds: after
    the norm, after the rotation, to E4M3. A position that does not exist is the nearest that does. The
    weights, cos_sin, and as a guess the positions, are read while the kernel before the call still runs:
    after weights were written, synchronise once before the first call. Bad arguments give RuntimeError, which
    names the argument.
    """
    load()
    torch.ops.gb10.attention_front(
        qkv,
        heads.q_weight,
        heads.k_weight,
        heads.epsilon,
        heads.plus_one,
        rope.cos_sin,
        rope.positions,
        rope.height_section,
        rope.width_section,
        heads.heads,
        heads.kv_heads,
        heads.gated,
        query,
        key_out,
        cache.key if cache else None,
        cache.value if cache else None,
        cache.slots if cache else None,
        q_scale,
        cache.k_scale if cache else None,
        cache.v_scale if cache else None,
    )


def attention_gate(out: torch.Tensor, gates: torch.Tensor) -> None:
    """Multiply ``out`` by ``sigmoid(gates)``, in place, rounded once.

    ``out``: bfloat16 or float16 ``[M, heads, D]``, contiguous, D a multiple of 8, at most 1024; ``gates``:
    the same shape and dtype, strides but the last multiples of 8. Bad arguments give RuntimeError.
    """
    load()
    torch.ops.gb10.attention_gate(out, gates)
