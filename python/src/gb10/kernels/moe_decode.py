"""A mixture-of-experts layer for decode, after routing, straight from NVFP4 weights (kernels/moe_decode)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypedDict, Unpack

import torch

from gb10.errors import UserError
from gb10.kernels.library import load

_ALIASES = {"gelu_pytorch_tanh": "gelu_tanh"}
# What vLLM 0.32.0 fixes for an activation: (limit, alpha, beta).
_FIXED = {"swigluoai": (7.0, 1.702, 1.0), "swiglustep": (7.0, 1.0, 0.0)}


class SharedExpert(NamedTuple):
    """The expert that every token has. Its intermediate size may differ from the routed experts'."""

    w13: torch.Tensor
    """uint8 ``[2 * I, hidden / 2]``, rows as in the routed ``w13``."""

    w13_scales: torch.Tensor
    """float8_e4m3fn ``[2 * I, hidden / 16]``, swizzled when the routed ones are."""

    w13_global: torch.Tensor
    """float32, one number, or two: gate, up."""

    w2: torch.Tensor
    """uint8 ``[hidden, I / 2]``."""

    w2_scales: torch.Tensor
    """float8_e4m3fn ``[hidden, I / 16]``."""

    w2_global: torch.Tensor
    """float32, one number."""

    multiplier: torch.Tensor | None = None
    """``[M]`` or ``[M, 1]``, float32 or the dtype of x: multiplies its output for each token. None: 1."""


class ActivationNumbers(NamedTuple):
    """The numbers an activation is defined with; see ``activation_numbers``."""

    limit: float
    alpha: float
    beta: float


def activation_numbers(
    activation: str, limit: float | None = None, alpha: float | None = None, beta: float | None = None
) -> ActivationNumbers:
    """Fill in what vLLM 0.32.0 takes for the numbers of ``activation`` that are not given.

    silu, swigluoai and swigluoai_uninterleave are
    ``min(g, limit) * sigmoid(alpha * min(g, limit)) * (clamp(u, -limit, limit) + beta)`` of gate g and up u:
    no limit, 1 and 0 unless given; swigluoai: 7, 1.702 and 1. swigluoai_uninterleave needs a limit.
    swiglustep is ``min(silu(g), limit) * clamp(u, -limit, limit)``, limit 7 unless given. situ is
    ``alpha * tanh(g / alpha) * sigmoid(g) * u``, u replaced by ``beta * tanh(u / beta)`` where beta is
    positive; alpha (vLLM's ``activation_situ_beta``) must be given. The others ignore all three.
    Raises UserError when a number is missing.
    """
    if activation == "swigluoai_uninterleave" and limit is None:
        raise UserError("activation swigluoai_uninterleave needs a limit; give limit=")
    if activation == "situ" and alpha is None:
        raise UserError(
            "activation situ needs the bound of its gate; give alpha= (vLLM's activation_situ_beta)"
        )
    fixed = _FIXED.get(activation, (math.inf, 1.0, 0.0))
    given = (limit, alpha, beta)
    return ActivationNumbers(
        *(usual if value is None else value for value, usual in zip(given, fixed, strict=True))
    )


class Options(TypedDict, total=False):
    """What a layer may have besides; see ``moe_decode``."""

    expert_map: torch.Tensor | None
    shared: SharedExpert | None
    activation: str
    limit: float | None
    alpha: float | None
    beta: float | None
    up_first: bool
    swizzled: bool
    router_weight_on_input: bool


def option_arguments(
    *,
    expert_map: torch.Tensor | None = None,
    shared: SharedExpert | None = None,
    activation: str = "silu",
    limit: float | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    up_first: bool = False,
    swizzled: bool = False,
    router_weight_on_input: bool = False,
) -> tuple[Any, ...]:
    """The arguments from ``expert_map`` to ``router_weight_on_input`` of moe_decode and moe_grouped.

    Raises UserError as ``activation_numbers`` does.
    """
    activation = _ALIASES.get(activation, activation)
    return (
        expert_map,
        *((None,) * 7 if shared is None else shared),
        activation,
        *activation_numbers(activation, limit, alpha, beta),
        *(up_first, swizzled, router_weight_on_input),
    )


def workspace_bytes(tokens: int, topk: int, intermediate: int, shared_intermediate: int) -> int:
    """Bytes of workspace for a call of that size; ``shared_intermediate`` is 0 without a shared expert.

    The results of the activation are kept there in float16, each 8 of them with a power of two in one byte.
    """
    values = tokens * (topk * intermediate + shared_intermediate)
    return 2 * values + values // 8


def moe_decode(
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
    """Give ``y[m] = sum over slots s of topk_weights[m, s] * w2[e] . act(w13[e] . x[m])`` with
    ``e = topk_ids[m, s]``, plus the shared expert's output times its multiplier.

    ``x``: bfloat16 or float16 ``[M, hidden]``, M from 1 to 16. ``w13``: uint8 ``[E, 2 * I, hidden / 2]``, two
    E2M1 codes a byte, the even k in the low nibble; the rows are gate then up (ModelOpt; vLLM's CUTLASS
    backend), with ``up_first`` up then gate (FlashInfer's backends), for swigluoai in turn; ``[E, I,
    hidden / 2]`` for the ``_no_mul`` activations. ``w2``: uint8 ``[E, hidden, I / 2]``. hidden and I are
    multiples of 64, at most 32768; E is at most 8192. ``w13_scales`` and ``w2_scales``: float8_e4m3fn, finite
    and not negative, ``[E, rows, k / 16]``, or with ``swizzled`` each expert's as
    ``gb10.nvfp4.swizzle_128x4`` makes them, ``[E, rows rounded up to 128, k / 16]``. ``w13_global``: float32
    ``[E]`` or ``[E, 2]`` (gate, up, whatever their rows' order); ``w2_global``: float32 ``[E]`` (ModelOpt's
    ``weight_scale_2``).

    ``topk_ids``: int32 or int64 ``[M, topk]``, topk from 1 to 32; ``topk_weights``: float32, the same
    shape. With ``expert_map`` (int32 ``[global experts]``) an id is looked up there. An id that is
    negative, beyond the experts (or the map), or mapped to no local expert contributes nothing.
    ``router_weight_on_input`` multiplies gate and up by the weight, before the activation, and not the
    output.

    ``activation`` is a name of vLLM's MoEActivation; gated relu2, which vLLM names and does not define, is
    refused. ``limit``, ``alpha``, ``beta``: see ``activation_numbers``. ``workspace``: uint8, at least
    ``workspace_bytes``; ``out``: as x. Both are made when None.

    All tensors are contiguous and on one CUDA device; x, workspace and weights begin at a multiple of 16
    bytes. Sums are FP32, in an order that the shapes and the ids of the call decide: two calls give the same
    bits. Weights may be read while the kernel before the call still runs: after they were written,
    synchronise once before the first call. Bad arguments give RuntimeError, which names the argument.
    """
    load()
    if out is None:
        out = torch.empty_like(x)
    if workspace is None:
        shared = options.get("shared")
        shared_intermediate = 0 if shared is None else 2 * shared.w2.shape[-1]
        size = workspace_bytes(x.shape[0], topk_ids.shape[-1], 2 * w2.shape[-1], shared_intermediate)
        workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
    weights = (w13, w13_scales, w13_global, w2, w2_scales, w2_global)
    torch.ops.gb10.moe_decode(
        x, *weights, topk_ids, topk_weights, *option_arguments(**options), workspace, out
    )
    return out
