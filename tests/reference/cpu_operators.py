"""gb10's CUDA operators for CPU tensors, in plain float32 torch: what the plug-in's logic is tested with.

They have the schemas of the kernels (kernels/*/ops.cpp) and their places of rounding; they are slow. Where
the real library is loaded its operators stay, and `install` says so by raising.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from gb10.kernels.library import KERNELS
from gb10.nvfp4 import dequantize, unswizzle_128x4

Tensor = torch.Tensor

MOST_TOKENS = 16
"""All of them take 1 to so many tokens (gdn_decode: any number of sequences; moe_grouped, add_norm and
attention_front: any of tokens)."""

_MOE = (
    "(Tensor x, Tensor w13, Tensor w13_scales, Tensor w13_global, Tensor w2, Tensor w2_scales, "
    "Tensor w2_global, Tensor topk_ids, Tensor topk_weights, Tensor? expert_map, Tensor? shared_w13, "
    "Tensor? shared_w13_scales, Tensor? shared_w13_global, Tensor? shared_w2, Tensor? shared_w2_scales, "
    "Tensor? shared_w2_global, Tensor? shared_multiplier, str activation, float limit, float alpha, "
    "float beta, bool up_first, bool swizzled, bool router_weight_on_input, Tensor(a!) workspace, "
    "Tensor(b!) out) -> ()"
)

SCHEMAS = {
    "fp8_gemv": "(Tensor x, Tensor weight, Tensor scales, Tensor? bias, Tensor(a!) out) -> ()",
    "nvfp4_gemv": (
        "(Tensor x, Tensor weight, Tensor scales, Tensor global_scale, Tensor? bias, bool swizzled, "
        "Tensor(a!) out) -> ()"
    ),
    "moe_decode": _MOE,
    "moe_grouped": _MOE,
    "route_experts": (
        "(Tensor x, Tensor? residual, Tensor? norm_weight, float epsilon, bool norm_plus_one, "
        "Tensor gate_weight, Tensor? shared_gate_weight, bool renormalise, Tensor(a!) workspace, "
        "Tensor(b!) topk_ids, Tensor(c!) topk_weights, Tensor(d!)? shared_multiplier, Tensor(e!)? normed, "
        "Tensor(f!)? residual_out) -> ()"
    ),
    "add_norm": (
        "(Tensor x, Tensor? residual, Tensor weight, float epsilon, bool plus_one, Tensor(a!) normed, "
        "Tensor(b!)? residual_out) -> ()"
    ),
    "attention_front": (
        "(Tensor qkv, Tensor q_weight, Tensor k_weight, float epsilon, bool norm_plus_one, Tensor cos_sin, "
        "Tensor positions, int height_section, int width_section, int heads, int kv_heads, bool gated, "
        "Tensor(a!) query, Tensor(b!)? key_out, Tensor(c!)? key_cache, Tensor(d!)? value_cache, "
        "Tensor? slots, Tensor? q_scale, Tensor? k_scale, Tensor? v_scale) -> ()"
    ),
    "attention_gate": "(Tensor(a!) out, Tensor gates) -> ()",
    "gdn_decode": (
        "(Tensor mixed, Tensor(a!) conv_state, Tensor conv_weight, Tensor? conv_bias, Tensor A_log, "
        "Tensor dt_bias, Tensor(b!) state, Tensor norm_weight, float epsilon, Tensor slots, int key_heads, "
        "int value_heads, bool interleaved, Tensor(c!) out, Tensor? accepted=None, Tensor? starts=None) -> ()"
    ),
}


lengths: set[tuple[int, ...]] = set()
"""How many tokens sequences had in one call of gdn_decode, where that differed."""


class Library:
    """What stands in for the kernels' library; drop it, and they are gone."""

    def __init__(self) -> None:
        self._library = torch.library.Library("gb10", "FRAGMENT")
        self.calls: list[tuple[str, int]] = []
        """Each call: the operator's name and its number of tokens."""
        implementations: dict[str, Callable[..., None]] = {
            "fp8_gemv": fp8_gemv,
            "nvfp4_gemv": nvfp4_gemv,
            "moe_decode": moe_decode,
            "moe_grouped": moe_grouped,
            "route_experts": route_experts,
            "add_norm": add_norm,
            "attention_front": attention_front,
            "attention_gate": attention_gate,
            "gdn_decode": gdn_decode,
        }
        for name, schema in SCHEMAS.items():
            self._library.define(name + schema)
            self._library.impl(name, self._recorded(name, implementations[name]), "CPU")
            torch.library.register_fake(f"gb10::{name}", lambda *_: None, lib=self._library)

    def _recorded(self, name: str, function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def call(x: Tensor, *rest: Any) -> None:
            self.calls.append((name, x.shape[0]))
            function(x, *rest)

        return call


@functools.cache
def install() -> Library:
    """Define the operators, once in a process; the same object each time.

    `gb10.kernels.library.load` finds them loaded from then on.

    Raises RuntimeError where one of the operators is defined already: the real library is loaded.
    """
    from gb10.kernels import library

    library._load = lambda wanted: None if wanted == KERNELS else _no_such(wanted)  # type: ignore[assignment]
    return Library()


def _no_such(wanted: object) -> None:
    raise RuntimeError(f"there is no stand-in on the CPU for {wanted}")


def fp8_gemv(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """One scale a row (``[N]``, ``[N, 1]``) or a block of 128 x 128."""
    _check_tokens(x, weight.shape[1])
    rows, columns = weight.shape
    values = weight.float()
    if scales.shape[0] == rows and scales.numel() == rows:
        values *= scales.reshape(-1, 1)
    else:
        spread = scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
        values *= spread
    _linear(x, values, bias, out)


def nvfp4_gemv(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    global_scale: Tensor,
    bias: Tensor | None,
    swizzled: bool,
    out: Tensor,
) -> None:
    """See gb10.kernels.nvfp4_gemv."""
    _check_tokens(x, 2 * weight.shape[1])
    _linear(x, _values(weight, scales, global_scale.reshape(()), swizzled), bias, out)


def moe_decode(x: Tensor, *arguments: Any) -> None:
    """See gb10.kernels.moe_decode; here silu only, without a limit."""
    from gb10.kernels.moe_decode import workspace_bytes

    _, inner, shared_inner, topk = _moe_sizes(arguments)
    _moe(MOST_TOKENS, workspace_bytes(x.shape[0], topk, inner, shared_inner), x, *arguments)


def moe_grouped(x: Tensor, *arguments: Any) -> None:
    """See gb10.kernels.moe_grouped; rounded once, at the end."""
    from gb10.kernels.moe_grouped import workspace_bytes

    experts, inner, shared_inner, topk = _moe_sizes(arguments)
    needed = workspace_bytes(x.shape[0], topk, experts, x.shape[1], inner, shared_inner)
    _moe(1 << 15, needed, x, *arguments)


def _moe_sizes(arguments: tuple[Any, ...]) -> tuple[int, int, int, int]:
    """Of the arguments after x: experts, intermediate size, that of the shared expert or 0, topk."""
    w2, topk_ids, shared_w2 = arguments[3], arguments[6], arguments[12]
    shared_inner = 0 if shared_w2 is None else 2 * shared_w2.shape[-1]
    return w2.shape[0], 2 * w2.shape[-1], shared_inner, topk_ids.shape[1]


def _moe(
    most_tokens: int,
    needed: int,
    x: Tensor,
    w13: Tensor,
    w13_scales: Tensor,
    w13_global: Tensor,
    w2: Tensor,
    w2_scales: Tensor,
    w2_global: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    expert_map: Tensor | None,
    shared_w13: Tensor | None,
    shared_w13_scales: Tensor | None,
    shared_w13_global: Tensor | None,
    shared_w2: Tensor | None,
    shared_w2_scales: Tensor | None,
    shared_w2_global: Tensor | None,
    shared_multiplier: Tensor | None,
    activation: str,
    limit: float,
    alpha: float,
    beta: float,
    up_first: bool,
    swizzled: bool,
    router_weight_on_input: bool,
    workspace: Tensor,
    out: Tensor,
) -> None:
    """See gb10.kernels.moe_decode; here silu only, without a limit."""
    if activation != "silu" or (limit, alpha, beta) != (math.inf, 1.0, 0.0):
        raise NotImplementedError(f"the stand-in has plain silu, not {activation} {limit} {alpha} {beta}")
    _check_tokens(x, 2 * w13.shape[-1], most_tokens)
    if workspace.dtype != torch.uint8 or workspace.numel() < needed:
        raise RuntimeError(f"workspace has {workspace.numel()} bytes, needed are {needed}")

    def expert(
        token: Tensor,
        first: tuple[Tensor, Tensor, Tensor],
        second: tuple[Tensor, Tensor, Tensor],
        on_input: float,
    ) -> Tensor:
        codes, scales, numbers = first
        halves = _values(codes, scales, 1.0, swizzled).chunk(2)
        gate_rows, up_rows = reversed(halves) if up_first else halves
        gate_scale, up_scale = numbers.reshape(-1)[0], numbers.reshape(-1)[-1]
        gate = on_input * gate_scale * (gate_rows @ token)
        up = on_input * up_scale * (up_rows @ token)
        down = _values(*second[:2], second[2].reshape(()), swizzled)
        return down @ (F.silu(gate) * up)

    ids = topk_ids.tolist()
    for m, token in enumerate(x.float()):
        total = torch.zeros(x.shape[1])
        for wanted, weight in zip(ids[m], topk_weights[m].tolist(), strict=True):
            number = wanted
            if expert_map is not None:
                number = int(expert_map[wanted]) if 0 <= wanted < len(expert_map) else -1
            if 0 <= number < w13.shape[0]:
                one = expert(
                    token,
                    (w13[number], w13_scales[number], w13_global[number]),
                    (w2[number], w2_scales[number], w2_global[number]),
                    weight if router_weight_on_input else 1.0,
                )
                total += one if router_weight_on_input else weight * one
        if shared_w13 is not None:
            assert shared_w13_scales is not None and shared_w13_global is not None
            assert shared_w2 is not None and shared_w2_scales is not None and shared_w2_global is not None
            one = expert(
                token,
                (shared_w13, shared_w13_scales, shared_w13_global),
                (shared_w2, shared_w2_scales, shared_w2_global),
                1.0,
            )
            total += one if shared_multiplier is None else shared_multiplier.reshape(-1)[m].float() * one
        out[m] = total.to(out.dtype)


def route_experts(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    epsilon: float,
    norm_plus_one: bool,
    gate_weight: Tensor,
    shared_gate_weight: Tensor | None,
    renormalise: bool,
    workspace: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    shared_multiplier: Tensor | None,
    normed: Tensor | None,
    residual_out: Tensor | None,
) -> None:
    """Residual + RMSNorm + router + top-k + the shared expert's gate."""
    _check_tokens(x, gate_weight.shape[1])
    if workspace.dtype != torch.uint8 or bool(workspace.any()):
        raise RuntimeError("workspace is uint8, and zero before each call")
    if (norm_weight is None) != (normed is None) or (norm_weight is None) != (residual_out is None):
        raise RuntimeError("normed and residual_out belong to norm_weight")
    if (shared_gate_weight is None) != (shared_multiplier is None):
        raise RuntimeError("shared_multiplier belongs to shared_gate_weight")
    token = x
    if norm_weight is not None:
        assert normed is not None and residual_out is not None
        total = x if residual is None else (x.float() + residual.float()).to(x.dtype)
        wide = total.float()
        factor = norm_weight.float() + (1.0 if norm_plus_one else 0.0)
        token = (wide * (wide.square().mean(-1, keepdim=True) + epsilon).rsqrt() * factor).to(x.dtype)
        residual_out.copy_(total)
        normed.copy_(token)
    logits = (token.float() @ gate_weight.float().T).to(x.dtype).float()
    # A stable sort: of equal logits the lower id comes first.
    ids = logits.sort(dim=-1, descending=True, stable=True).indices[:, : topk_ids.shape[1]]
    weights = logits.softmax(-1).gather(1, ids)
    topk_ids.copy_(ids)
    topk_weights.copy_(weights / weights.sum(-1, keepdim=True) if renormalise else weights)
    if shared_gate_weight is not None:
        assert shared_multiplier is not None
        gate = (token.float() @ shared_gate_weight.float().T).to(x.dtype).float()
        shared_multiplier.copy_(gate.sigmoid().reshape(shared_multiplier.shape))


def add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    epsilon: float,
    plus_one: bool,
    normed: Tensor,
    residual_out: Tensor | None,
) -> None:
    """Residual + RMSNorm."""
    _check_tokens(x, weight.numel(), 1 << 20)
    total = x.float() if residual is None else x.float() + residual.float()
    normed.copy_(_normed(total, weight, epsilon, plus_one))
    if residual_out is not None:
        residual_out.copy_(total)


def _normed(x: Tensor, weight: Tensor, epsilon: float, plus_one: bool) -> Tensor:
    """RMSNorm of float32 rows, in the dtype of ``weight``."""
    scaled = x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    if plus_one:
        return (scaled * (1.0 + weight.float())).to(weight.dtype)
    return scaled.to(weight.dtype) * weight


def attention_front(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    epsilon: float,
    norm_plus_one: bool,
    cos_sin: Tensor,
    positions: Tensor,
    height_section: int,
    width_section: int,
    heads: int,
    kv_heads: int,
    gated: bool,
    query: Tensor,
    key_out: Tensor | None,
    key_cache: Tensor | None,
    value_cache: Tensor | None,
    slots: Tensor | None,
    q_scale: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> None:
    """Split, norms of heads, rope, cache and query. A cache is float8_e4m3fn, uint8 or of the dtype."""
    tokens, size = qkv.shape[0], q_weight.numel()
    if tokens < 1 or (key_cache is None) != (slots is None):
        raise RuntimeError("no tokens, or a cache without slots")
    if qkv.shape[1] != (heads * (2 if gated else 1) + 2 * kv_heads) * size:
        raise RuntimeError(f"qkv has {qkv.shape[1]} columns")
    q, k, v = qkv.split((qkv.shape[1] - 2 * kv_heads * size, kv_heads * size, kv_heads * size), dim=1)
    q = q.unflatten(1, (heads, -1))[..., :size]
    half = cos_sin.shape[1] // 2
    angles = torch.arange(half)
    axis = torch.zeros(half, dtype=torch.long)
    axis[(angles % 3 == 1) & (angles < 3 * height_section)] = 1
    axis[(angles % 3 == 2) & (angles < 3 * width_section)] = 2
    rows = positions if positions.dim() == 2 else positions.expand(3, -1)
    table = cos_sin[rows.long().clamp(0, cos_sin.shape[0] - 1)].float()
    cosines = table[axis, :, angles].T[:, None]
    sines = table[axis, :, half + angles].T[:, None]

    def turned(x: Tensor, weight: Tensor) -> Tensor:
        normed = _normed(x.float(), weight, epsilon, norm_plus_one).float()
        one, two, rest = normed.split((half, half, size - 2 * half), dim=-1)
        parts = (one * cosines - two * sines, two * cosines + one * sines, rest)
        return torch.cat(parts, dim=-1).to(qkv.dtype)

    query_now = turned(q, q_weight).flatten(1)
    query.copy_(query_now if q_scale is None else _eight(query_now.float() * q_scale.reciprocal()))
    key = turned(k.unflatten(1, (kv_heads, size)), k_weight)
    if key_out is not None:
        key_out.copy_(key.flatten(1))
    if key_cache is None or slots is None:
        return
    assert value_cache is not None
    value = v.unflatten(1, (kv_heads, size))
    blocks, block_size = key_cache.shape[:2]
    for cache, numbers, scale in ((key_cache, key, k_scale), (value_cache, value, v_scale)):
        made = numbers if scale is None else _eight(numbers.float() / scale)
        for token, slot in enumerate(slots.tolist()[:tokens]):
            if 0 <= slot < blocks * block_size:
                one = made[token].view(cache.dtype) if scale is not None else made[token]
                cache[slot // block_size, slot % block_size] = one


def _eight(x: Tensor) -> Tensor:
    most = torch.finfo(torch.float8_e4m3fn).max
    return x.clamp(-most, most).to(torch.float8_e4m3fn)


def attention_gate(out: Tensor, gates: Tensor) -> None:
    """In place."""
    out.copy_(out.float() * gates.float().sigmoid())


def gdn_decode(
    mixed: Tensor,
    conv_state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    A_log: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    norm_weight: Tensor,
    epsilon: float,
    slots: Tensor,
    key_heads: int,
    value_heads: int,
    interleaved: bool,
    out: Tensor,
    accepted: Tensor | None = None,
    starts: Tensor | None = None,
) -> None:
    """T tokens of each sequence (slots ``[N]``: one), with ``starts`` up to T: split, convolution, delta
    rule, gated norm."""
    dv, dk = state.shape[-2:]
    steps = slots.shape[1] if slots.dim() == 2 else 1
    places = slots.reshape(-1, steps).tolist()
    begins = [n * steps for n in range(len(places) + 1)] if starts is None else starts.tolist()
    counts = [last - first for first, last in itertools.pairwise(begins)]
    if (starts is None and begins[-1] != mixed.shape[0]) or not 0 <= begins[-1] <= mixed.shape[0]:
        raise RuntimeError(f"mixed has {mixed.shape[0]} rows for {len(places)} sequences of {steps}")
    if begins[0] != 0 or len(counts) != len(places) or not all(0 <= count <= steps for count in counts):
        raise RuntimeError(f"starts are {begins} for {len(places)} sequences of at most {steps}")
    if len(set(counts)) > 1:
        lengths.add(tuple(counts))
    q, k, v, z, b, a = _split(mixed, key_heads, value_heads, dk, dv, interleaved)
    channels = torch.cat((q, k, v), dim=1)
    group = value_heads // key_heads
    out[begins[-1] :] = 0
    tokens_of = [(sequence, step) for sequence, count in enumerate(counts) for step in range(count)]
    for n, (sequence, step) in enumerate(tokens_of):
        at = places[sequence][step]
        if places[sequence][0] <= 0:
            out[n] = 0
            continue
        taps, last = conv_state[places[sequence][0]], conv_weight.shape[1] - 1
        if step == 0:
            first = 0 if accepted is None else int(accepted[sequence]) - 1
            inputs = taps[:, first : first + last].clone()
            memory = state[places[sequence][first]].float()
            tokens = channels[n : n + counts[sequence]].T
            kept = torch.cat((inputs[:, 1:], tokens), dim=1)
            taps[:, : kept.shape[1]] = kept
        window = torch.cat((inputs, channels[n, :, None]), dim=1)
        inputs = window[:, 1:]
        filtered = (window.float() * conv_weight.float()).sum(-1)
        if conv_bias is not None:
            filtered += conv_bias.float()
        rounded = F.silu(filtered).to(mixed.dtype).float()
        query, key, value = rounded.split((key_heads * dk, key_heads * dk, value_heads * dv))
        query = _unit(query.view(key_heads, dk)).repeat_interleave(group, 0) * dk**-0.5
        key = _unit(key.view(key_heads, dk)).repeat_interleave(group, 0)
        value = value.view(value_heads, dv)
        decay = torch.exp(-A_log.float().exp() * F.softplus(a[n].float() + dt_bias.float()))
        memory = memory * decay[:, None, None]
        known = torch.einsum("hvk,hk->hv", memory, key)
        change = b[n].float().sigmoid()[:, None] * (value - known)
        memory = memory + change[:, :, None] * key[:, None, :]
        state[at] = memory.to(state.dtype)
        memory = state[at].float()
        core = torch.einsum("hvk,hk->hv", memory, query).to(mixed.dtype).float()
        core = core * (core.square().mean(-1, keepdim=True) + epsilon).rsqrt() * norm_weight.float()
        out[n] = (core * F.silu(z[n].float().view(value_heads, dv))).flatten().to(out.dtype)


def _split(
    mixed: Tensor, key_heads: int, value_heads: int, dk: int, dv: int, interleaved: bool
) -> tuple[Tensor, ...]:
    """q, k, v, z, b, a of each row, heads in order."""
    keys, values = key_heads * dk, value_heads * dv
    qkvz, ba, _rest = mixed.split(
        (
            2 * keys + 2 * values,
            2 * value_heads,
            mixed.shape[1] - 2 * (keys + values + value_heads),
        ),
        dim=1,
    )
    if not interleaved:
        return (*qkvz.split((keys, keys, values, values), dim=1), *ba.chunk(2, dim=1))
    group = values // key_heads
    by_head = qkvz.reshape(mixed.shape[0], key_heads, -1).split((dk, dk, group, group), dim=2)
    gates = ba.reshape(mixed.shape[0], key_heads, -1).chunk(2, dim=2)
    return tuple(part.flatten(1) for part in (*by_head, *gates))


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def _values(codes: Tensor, scales: Tensor, global_scale: Tensor | float, swizzled: bool) -> Tensor:
    """float32 ``[N, K]`` of an NVFP4 weight."""
    rows, half = codes.shape
    linear = unswizzle_128x4(scales, rows, half // 8) if swizzled else scales
    return dequantize(codes, linear, 1.0) * global_scale


def _linear(x: Tensor, values: Tensor, bias: Tensor | None, out: Tensor) -> None:
    result = x.float() @ values.T
    out.copy_(result if bias is None else result + bias.float())


def _check_tokens(x: Tensor, columns: int, most: int = MOST_TOKENS) -> None:
    if not 1 <= x.shape[0] <= most or x.dtype not in (torch.bfloat16, torch.float16):
        raise RuntimeError(f"the kernels do not take an x of {x.dtype} {list(x.shape)}")
    if not x.is_contiguous():
        raise RuntimeError(f"x has strides {x.stride()}: it must be contiguous")
    if x.shape[1] != columns or columns % 64:
        raise RuntimeError(f"x has {x.shape[1]} columns, the weight {columns}; a multiple of 64")
