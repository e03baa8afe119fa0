"""Decode with a weight packed to 2 of 4 (lossy, see gb10.sparse24), at the speed of its fewer bytes.

The operators are a library of their own (kernels/sparse24), named by ``GB10_KERNELS_SPARSE24``, or beside
the others.
"""

from __future__ import annotations

import torch

from gb10.errors import UserError
from gb10.kernels.library import SPARSE24, load
from gb10.kernels.moe_decode import activation_numbers
from gb10.sparse24 import Sparse24Weight


def sparse24_gemv(
    x: torch.Tensor,
    weight: Sparse24Weight,
    bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Give ``y[m, n] = sum over k of x[m, k] * w[n, k] (+ bias[n])``, w as ``gb10.sparse24.unpack`` has it.

    ``x`` is bfloat16 or float16 ``[M, K]``, M from 1 to 16, K a multiple of 16, at most 16384. ``weight`` is
    one matrix (no experts). ``bias`` (``[N]``) and ``out`` (``[M, N]``) have the dtype of ``x``. All are
    contiguous and on one CUDA device; ``x`` begins at a multiple of 16 bytes. For more tokens, unpack the
    weight and use what multiplies with dense NVFP4.

    Sums are FP32; two calls give the same bits. The kernel reads the weight and ``bias`` while the kernel
    before it in the stream still runs: after they were written, synchronise once before the first call (a
    model does so when its weights are loaded). Bad arguments give RuntimeError, which names the argument.
    """
    load(SPARSE24)
    if out is None:
        out = torch.empty((x.shape[0], weight.rows), dtype=x.dtype, device=x.device)
    torch.ops.gb10.sparse24_gemv(
        x, weight.values, weight.positions, weight.scales, weight.global_scale, bias, out
    )
    return out


def sparse24_moe(
    x: torch.Tensor,
    w13: Sparse24Weight,
    w2: Sparse24Weight,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    *,
    expert_map: torch.Tensor | None = None,
    shared: object | None = None,
    activation: str = "silu",
    limit: float | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    up_first: bool = False,
    router_weight_on_input: bool = False,
    workspace: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Give ``y[m] = sum over slots s of topk_weights[m, s] * w2[e] . act(w13[e] . x[m])`` with
    ``e = topk_ids[m, s]``: a mixture-of-experts layer after routing, from packed experts.

    ``x``: bfloat16 or float16 ``[M, hidden]``, M from 1 to 16. ``w13``: a packed ``[E, 2 * I, hidden]``, gate
    rows then up rows, or with ``up_first`` up then gate; ``w2``: a packed ``[E, hidden, I]``; hidden and I
    are multiples of 16, at most 65536; E is at most 65536. Global scales are float32 ``[E]``; that of w13 may
    be ``[E, 2]``: gate, up.

    ``topk_ids``: int32 or int64 ``[M, topk]``, topk from 1 to 32; ``topk_weights``: float32, the same shape.
    With ``expert_map`` (int32 ``[global experts]``) an id is looked up there. An id that is negative, beyond
    the experts (or the map), or mapped to no local expert contributes nothing. ``router_weight_on_input``
    multiplies gate and up by the weight, before the activation, and not the output.

    ``activation`` is silu, gelu, gelu_tanh or swigluoai_uninterleave; ``limit``, ``alpha``, ``beta``: see
    ``gb10.kernels.moe_decode.activation_numbers``. A shared expert is not packed: run it as dense NVFP4 and
    add its output; ``shared`` other than None raises UserError. ``workspace``: float32, at least
    ``M * topk * I`` numbers; ``out``: as x. Both are made when None.

    All tensors are contiguous and on one CUDA device; x and workspace begin at a multiple of 16 bytes. Sums
    are FP32; two calls give the same bits. Weights may be read while the kernel before the call still runs:
    after they were written, synchronise once before the first call. Two launches, or two more for every part
    of the tokens when their activations do not fit into shared memory together. Bad arguments give
    RuntimeError, which names the argument.
    """
    load(SPARSE24)
    if shared is not None:
        raise UserError("the 2 of 4 path takes no shared expert; run it as dense NVFP4 and add its output")
    numbers = activation_numbers(activation, limit, alpha, beta)
    if out is None:
        out = torch.empty_like(x)
    if workspace is None:
        size = x.shape[0] * topk_ids.shape[-1] * w2.columns
        workspace = torch.empty(size, dtype=torch.float32, device=x.device)
    torch.ops.gb10.sparse24_moe(
        x,
        w13.values,
        w13.positions,
        w13.scales,
        w13.global_scale,
        w2.values,
        w2.positions,
        w2.scales,
        w2.global_scale,
        w2.columns,
        topk_ids,
        topk_weights,
        expert_map,
        activation,
        *numbers,
        up_first,
        router_weight_on_input,
        workspace,
        out,
    )
    return out
