"""Gated DeltaNet between its two projections, for decode, in one launch (kernels/gdn_decode)."""

from __future__ import annotations

import torch

from gb10.kernels.library import load


def gdn_decode(
    mixed: torch.Tensor,
    conv_state: torch.Tensor,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    norm_weight: torch.Tensor,
    epsilon: float,
    slots: torch.Tensor,
    key_heads: int,
    value_heads: int,
    *,
    interleaved: bool,
    accepted: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Take N sequences on by up to T tokens: split, convolution with SiLU, gated delta rule, gated RMSNorm.

    ``mixed``: bfloat16 or float16 ``[M, columns or more]``, a sequence's tokens one after another; the
    outputs of in_proj_qkvz and, right of them, of in_proj_ba. ``interleaved`` (Qwen3-Next): for each key head
    q, k, the v and the z of its value heads, then for each key head the b and the a of its value heads; else
    (Qwen3.5) all q, k, v, z, b, a. Rows may lie apart by an even number, columns not.

    ``starts``: int32 ``[N + 1]``, never falling, from 0: sequence n has the rows from ``starts[n]`` to before
    ``starts[n + 1]``, at most T of them, maybe none; rows from ``starts[N]`` on are padding and give zeros.
    None: each has T, and M is N * T.

    ``conv_state``: the dtype of mixed, ``[slots, channels, T + 2 or more]`` in any strides; channels are all
    q, k, v. ``conv_weight``: ``[channels, 4]``; ``conv_bias``: ``[channels]``. ``A_log``: float32
    ``[value_heads]``; ``dt_bias``: ``[value_heads]`` and ``norm_weight``: ``[value size]``, float32 or the
    dtype of mixed. ``state``: float32 or the dtype of mixed, ``[slots, value_heads, value size, key size]``,
    slots may lie apart; both sizes are 64 or 128. The value heads of a key head have at most 512 rows
    together.

    ``slots``: int32 ``[N]``, or ``[N, T]`` with T from 1 to 8, N at most 65535. A sequence's state is read
    from ``slots[n, accepted[n] - 1]`` (``accepted``: int32 ``[N]``; None: from ``slots[n, 0]``) and written
    to ``slots[n, i]`` after token i; its convolution's inputs are in ``conv_state[slots[n, 0]]``, the last
    three from tap ``accepted[n] - 1`` on, and are left there as the last two before and all of this call: as
    vLLM 0.32.0 does it to verify drafts. Slots must be distinct. Slot 0 and below, and those that do not
    exist, are none: such a sequence gets zeros and touches no state.

    ``out``: ``[M, value_heads * value size]``, made when None; the gate is SiLU of z. A call for several
    tokens gives the bits of as many calls for one, and those of a sequence do not depend on the others.
    Weights are read while the kernel before the call still runs: after they were written, synchronise once
    before the first call. Bad arguments give RuntimeError, which names the argument.
    """
    load()
    if out is None:
        out = torch.empty(
            (mixed.shape[0], value_heads * state.shape[2]), dtype=mixed.dtype, device=mixed.device
        )
    torch.ops.gb10.gdn_decode(
        mixed,
        conv_state,
        conv_weight,
        conv_bias,
        A_log,
        dt_bias,
        state,
        norm_weight,
        epsilon,
        slots,
        key_heads,
        value_heads,
        interleaved,
        out,
        accepted,
        starts,
    )
    return out
