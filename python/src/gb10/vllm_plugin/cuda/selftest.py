"""What our kernels compute on this GPU, before the engine is ready: each operation, with the model's weights.

Of every operation the first and the last layer run on random tokens and are held against float64 from the
same weights. Of a large matrix some rows are looked at. A result that is too far off ends the start with the
operation's name; GB10_SELF_TEST says otherwise (`settings.SelfTest`).
"""

import functools
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from vllm.model_executor.layers.layernorm import GemmaRMSNorm
from vllm.platforms import current_platform

from gb10 import fp8
from gb10.nvfp4 import dequantize, unswizzle_128x4
from gb10.vllm_plugin import log
from gb10.vllm_plugin.cuda import dispatch
from gb10.vllm_plugin.cuda.layers.attention import Front, split_cache
from gb10.vllm_plugin.cuda.layers.gdn import MAX_STEPS, Batch
from gb10.vllm_plugin.cuda.layers.norm import add_norm
from gb10.vllm_plugin.cuda.requant.dense import Dense, Fp8Dense, NvFp4Dense, Plain
from gb10.vllm_plugin.cuda.requant.methods import dense_of
from gb10.vllm_plugin.cuda.settings import SelfTest
from gb10.vllm_plugin.refusal import refuse

logger = logging.getLogger("vllm.gb10")

FEW, SOME = (1, 5), 20
"""Tokens: what kernels for decode take, and more than they do."""

EXACT, NEAR, ROUGH = 0.01, 0.03, 0.1
"""Distances that are allowed, of the exact result. EXACT: for kernels that leave activations as they are
(their own tests allow 0.002; a few results of one token lose more by rounding). NEAR: with roundings in
between. ROUGH: for activations in FP8, and for what is exponential in a rounded number."""

_ROWS = 128
"""Rows of a large matrix that are looked at."""

Tensor = torch.Tensor
Exact = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Check:
    """One comparison: how far a result is from the exact one, both as one long vector."""

    operation: str
    name: str
    tokens: int
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether it is near enough; a result that is no number is not."""
        return self.error <= self.limit

    @property
    def words(self) -> str:
        """For people."""
        if math.isnan(self.error):
            return f"{self.operation} of {self.name} gives no number"
        return (
            f"{self.operation} of {self.name} with {self.tokens} tokens is {self.error:.2g} of the exact "
            f"result away from it (at most {self.limit:g})"
        )


def _distance(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).norm() / exact.norm())


def _random(tokens: int, columns: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator(device=like.device).manual_seed(tokens)
    return torch.randn(tokens, columns, generator=generator, device=like.device).to(dtype)


def _four_bit(codes: Tensor, scales: Tensor, global_scale: Tensor, swizzled: bool) -> Tensor:
    """float64 ``[N, K]``; ``global_scale`` one number, or one for each half of the rows."""
    rows, half = codes.shape
    linear = unswizzle_128x4(scales, rows, half // 8) if swizzled else scales
    factors = global_scale.double().reshape(-1).repeat_interleave(rows // global_scale.numel())
    return dequantize(codes, linear, 1.0).double() * factors[:, None]


def _rows_of(count: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device=device).manual_seed(count)
    return torch.randperm(count, generator=generator, device=device)[:_ROWS]


def _dense(made: Dense, rows: Tensor) -> Tensor:
    some = made.select(rows)
    if isinstance(some, Fp8Dense):
        return fp8.dequantize(some.held.codes, some.held.scales).double()
    if isinstance(some, NvFp4Dense):
        return _four_bit(*some.held, False)
    return some.tensors["weight"].double()


def _linear(
    operation: str, name: str, columns: int, run: Exact, rows: Tensor, exact: Tensor, like: Any
) -> Iterator[Check]:
    """A layer's product against ``exact``, which has some of its ``rows``. ``like``: its device and dtype."""
    for tokens in (*FEW, SOME):
        x = _random(tokens, columns, like[0], like[1])
        limit = EXACT if tokens in FEW else ROUGH
        yield Check(operation, name, tokens, _distance(run(x)[:, rows], x.double() @ exact.T), limit)


def _requantised(name: str, made: Dense, dtype: torch.dtype) -> Iterator[Check]:
    like = next(iter(made.tensors.values()))
    rows = _rows_of(made.shape[0], like.device)
    yield from _linear(
        made.operation, name, made.shape[1], made.forward, rows, _dense(made, rows), (like, dtype)
    )


def _native(name: str, layer: Any, dtype: torch.dtype) -> Iterator[Check]:
    codes, scales, global_scale, swizzled = layer.gb10_native
    rows = _rows_of(codes.shape[0], codes.device)
    linear = unswizzle_128x4(scales, codes.shape[0], codes.shape[1] // 8) if swizzled else scales
    some = linear.view(torch.uint8)[rows].view(torch.float8_e4m3fn)
    exact = _four_bit(codes[rows], some, global_scale, False)
    if (ratios := getattr(layer, "part_ratios", None)) is not None:
        exact = exact * ratios.double()[rows, None]
    checks = _linear(
        "nvfp4_linear",
        name,
        2 * codes.shape[1],
        lambda x: layer.quant_method.apply(layer, x, None),
        rows,
        exact,
        (codes, dtype),
    )
    # For more tokens 12.x rounds activations by the checkpoint's scale, which does not fit random ones.
    yield from (check for check in checks if check.tokens in FEW or not swizzled)


def _router(name: str, block: Any) -> Iterator[Check]:
    """The norm and the residual, the choice, and its weights."""
    gate, plus = block.gate_weight.double(), 1.0 if block.plus_one else 0.0
    for tokens in FEW:
        x, residual = _random(2 * tokens, gate.shape[1], gate, block.gate_weight.dtype).split(tokens)
        routed = block.choose(x, residual)
        total = x.double() + residual.double()
        scale = (total.square().mean(-1, keepdim=True) + block.epsilon).rsqrt()
        normed = total * scale * (block.norm_weight.double() + plus)
        yield Check("router", f"{name} (norm)", tokens, _distance(routed.normed, normed), EXACT)
        yield Check("router", f"{name} (residual)", tokens, _distance(routed.residual, total), EXACT)
        logits = routed.normed.double() @ gate.T
        shares = logits.softmax(-1)
        best = logits.sort(-1, descending=True).values[:, : routed.ids.shape[1]]
        chosen = logits.gather(1, routed.ids.long())
        # Of near-ties either may be chosen: the chosen ones' logits count, and that none comes twice.
        doubled = any(len(set(ids)) < len(ids) for ids in routed.ids.tolist())
        distance = math.nan if doubled else _distance(chosen, best)
        yield Check("router", f"{name} (choice)", tokens, distance, ROUGH)
        weights = shares.gather(1, routed.ids.long())
        if block.runner.router.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        yield Check("router", f"{name} (weights)", tokens, _distance(routed.weights, weights), ROUGH)


def _experts(name: str, block: Any) -> Iterator[Check]:
    """Experts as the router's choice of random tokens wants them, the shared one with them."""
    experts = block.experts
    w13, s13, g13, w2, s2, g2 = experts.kernel.weights
    shared, swizzled = experts.shared, experts.kernel.swizzled
    if experts.routed.expert_map is not None or (shared is None and experts.module is not None):
        return  # of another rank, or apart
    for tokens in (*FEW, *([SOME] if experts.kernel.grouped else [])):
        x, residual = _random(2 * tokens, w2.shape[-2], w13, block.gate_weight.dtype).split(tokens)
        routed = block.choose(x, residual)
        out = torch.empty_like(x)
        experts.forward(routed.normed, routed.ids, routed.weights, routed.shared_multiplier, out)
        wide, exact = routed.normed.double(), torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        for number in routed.ids.unique().tolist():
            weight = (routed.weights.double() * (routed.ids == number)).sum(-1, keepdim=True)
            up = _four_bit(w13[number], s13[number], g13[number], swizzled)
            down = _four_bit(w2[number], s2[number], g2[number], swizzled)
            exact += weight * _expert(wide, up, down)
        if shared is not None:
            up = _four_bit(shared.w13, shared.w13_scales, shared.w13_global, swizzled)
            down = _four_bit(shared.w2, shared.w2_scales, shared.w2_global, swizzled)
            one = _expert(wide, up, down)
            factor = routed.shared_multiplier
            exact += one if factor is None else factor.double()[:, None] * one
        yield Check("nvfp4_moe", name, tokens, _distance(out, exact), EXACT)


def _expert(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    gate, value = (x @ up.T).chunk(2, dim=-1)
    return (F.silu(gate) * value) @ down.T


def _gdn(name: str, core: Any, hidden: int, dtype: torch.dtype) -> Iterator[Check]:
    """Sequences of one token from random states, and drafts of unequal length where the engine verifies some;
    what is left in the states counts too."""
    layer, most = core.layer, core.layer.num_spec + 1
    conv_dtype, state_dtype, *_ = layer.get_state_dtype()
    runs = [([1] * tokens, 1) for tokens in FEW]
    if 1 < most <= MAX_STEPS:
        runs.append(([most - 1, most, 1], most))
    for counts, steps in runs:
        tokens, last = sum(counts), len(counts) * steps
        mixed = core.project(_random(tokens, hidden, layer.A_log, dtype))
        conv = _random((last + 1) * (steps + 2), core.conv_weight.shape[0], layer.A_log, conv_dtype)
        conv = conv.view(last + 1, steps + 2, -1).transpose(1, 2)
        shape = (last + 1, core.value_heads, layer.head_v_dim, layer.head_k_dim)
        state = _random(last + 1, shape[1] * shape[2] * shape[3], layer.A_log, state_dtype).view(shape) * 0.1
        state = state.to(state_dtype)
        slots = torch.arange(last, 0, -1, dtype=torch.int32, device=mixed.device)
        batch, begins = Batch(tokens, slots), [0] * len(counts)
        if steps > 1:
            begins = [(steps - 1 + n) % steps for n in range(len(counts))]
            starts = list(itertools.accumulate(counts, initial=0))
            batch = Batch(
                tokens,
                slots.view(-1, steps),
                torch.tensor([begin + 1 for begin in begins], dtype=torch.int32, device=mixed.device),
                torch.tensor(starts, dtype=torch.int32, device=mixed.device),
            )
        sequences = list(zip(slots.view(-1, steps).tolist(), counts, begins, strict=True))
        exact, left = _gdn_exact(core, mixed, conv, state, sequences)
        out = mixed.new_empty(tokens, core.value_heads * layer.head_v_dim)
        core.decode(mixed, conv, state, batch, out)
        yield Check("gdn_decode", name, tokens, _distance(out, exact), NEAR)
        yield Check("gdn_decode", f"{name} (state)", tokens, _distance(state, left), NEAR)


def _gdn_exact(
    core: Any, mixed: Tensor, conv: Tensor, state: Tensor, sequences: list[tuple[list[int], int, int]]
) -> tuple[Tensor, Tensor]:
    """float64: the output, and all states afterwards.

    Of each sequence: its slots, how many tokens it has, and at which slot and tap it begins.
    """
    layer, heads, group = core.layer, core.value_heads, core.value_heads // core.key_heads
    qkv, z, b, a = core.unpack(mixed)
    keys = core.key_heads * layer.head_k_dim
    left = state.double()
    outputs: list[Tensor] = []
    for slots, count, begin in sequences:
        window, memory = conv[slots[0]][:, begin : begin + 3].double(), left[slots[begin]]
        for slot in slots[:count]:
            row = len(outputs)
            window = torch.cat((window[:, -3:], qkv[row, :, None].double()), dim=1)
            inputs = (window * core.conv_weight.double()).sum(-1)
            if layer.conv1d.bias is not None:
                inputs = inputs + layer.conv1d.bias.double()
            q, k, v = F.silu(inputs).split((keys, keys, inputs.numel() - 2 * keys))
            q, k = (F.normalize(part.view(core.key_heads, -1), dim=-1) for part in (q, k))
            q, k = q.repeat_interleave(group, 0) * layer.head_k_dim**-0.5, k.repeat_interleave(group, 0)
            softplus = F.softplus(a[row].double() + layer.dt_bias.double())
            memory = memory * torch.exp(-layer.A_log.double().exp() * softplus)[:, None, None]
            known = torch.einsum("hvk,hk->hv", memory, k)
            change = b[row].double().sigmoid()[:, None] * (v.view(heads, -1) - known)
            memory = memory + change[:, :, None] * k[:, None, :]
            value = torch.einsum("hvk,hk->hv", memory, q)
            scale = (value.square().mean(-1, keepdim=True) + layer.norm.eps).rsqrt()
            outputs.append((value * scale * layer.norm.weight.double() * F.silu(z[row].double())).flatten())
            left[slot] = memory
    return torch.stack(outputs), left


def _norm(name: str, norm: Any) -> Iterator[Check]:
    """A decoder layer's first norm, with a residual."""
    weight, plus = norm.weight, isinstance(norm, GemmaRMSNorm)
    for tokens in (*FEW, SOME):
        x, residual = _random(2 * tokens, weight.shape[0], weight, weight.dtype).split(tokens)
        normed, total = add_norm(x, residual, weight, norm.variance_epsilon, plus)
        exact = x.double() + residual.double()
        scale = (exact.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
        yield Check("norm", name, tokens, _distance(normed, exact * scale * (weight.double() + plus)), EXACT)
        yield Check("norm", f"{name} (residual)", tokens, _distance(total, exact), EXACT)


def _front(name: str, front: Front) -> Iterator[Check]:
    """Random rows of the projection at positions all over, into a cache as the backend has it, or none."""
    attention, weight, device = front.attention, front.q_norm.weight, front.cos_sin.device
    heads, kv_heads, size = attention.num_heads, attention.num_kv_heads, attention.head_size
    cached: torch.dtype = attention.kv_cache_torch_dtype
    eight = cached.itemsize == 1
    for tokens in (*FEW, SOME):
        qkv = _random(tokens, (heads * (1 + front.gated) + 2 * kv_heads) * size, weight, weight.dtype)
        rows = (3, tokens) if any(front.sections) else (tokens,)
        positions = torch.arange(3 * tokens, device=device).view(3, tokens) * 7 % len(front.cos_sin)
        positions = positions if len(rows) == 2 else positions[0]
        query, key = front.new_query(qkv), qkv.new_empty((tokens, kv_heads * size))
        cache = torch.zeros(3, kv_heads, tokens, 2 * size, dtype=cached, device=device)
        slots = torch.arange(tokens - 1, -1, -1, device=device) + tokens
        places = split_cache(attention, cache) if front.writes else None
        front.front(qkv, positions, query, key, places, slots)
        *gates, exact_q, exact_k, exact_v = _front_exact(front, qkv, positions)
        limit = EXACT if attention.query_quant is None else ROUGH
        q_scale = 1.0 if attention.query_quant is None else attention._q_scale.double()
        # What does not fit 8 bits with the checkpoint's scales is cut, as vLLM does it.
        most = torch.finfo(query.dtype).max
        wanted = (exact_q / q_scale).clamp(-most, most)
        yield Check("attention_front", f"{name} (query)", tokens, _distance(query, wanted.flatten(1)), limit)
        yield Check("attention_front", f"{name} (key)", tokens, _distance(key, exact_k.flatten(1)), EXACT)
        if front.writes:
            if eight:
                cache = cache.view(current_platform.fp8_dtype())
            exact = torch.zeros(3 * tokens, 2, kv_heads, size, dtype=torch.float64, device=device)
            exact[slots, 0], exact[slots, 1] = exact_k, exact_v
            if eight:
                exact[:, 0] /= attention._k_scale.double()
                exact[:, 1] /= attention._v_scale.double()
                exact = exact.clamp(-torch.finfo(cache.dtype).max, torch.finfo(cache.dtype).max)
            there = torch.stack(split_cache(attention, cache.to(qkv.dtype)), dim=2).flatten(0, 1)
            limit = ROUGH if eight else EXACT
            yield Check("attention_front", f"{name} (cache)", tokens, _distance(there, exact), limit)
        if front.gated:
            out = _random(tokens, heads * size, weight, weight.dtype).view(tokens, heads, size)
            exact = out.double() * gates[0].sigmoid()
            torch.ops.gb10.attention_gate(out, front.gates(qkv))
            yield Check("attention_front", f"{name} (gate)", tokens, _distance(out, exact), EXACT)


def _front_exact(front: Front, qkv: Tensor, positions: Tensor) -> list[Tensor]:
    """float64 ``[M, heads, head size]``: the gates where there are any, q, k and v."""
    attention, half = front.attention, front.cos_sin.shape[1] // 2
    heads, kv_heads, size = attention.num_heads, attention.num_kv_heads, attention.head_size
    units = qkv.double().unflatten(1, (-1, size))
    *_, q, k, v = units.split((heads * (1 + front.gated), kv_heads, kv_heads), dim=1)
    gates = [q[:, 1::2]] if front.gated else []
    q = q[:, ::2] if front.gated else q
    height, width = front.sections
    axes = [
        1 if i % 3 == 1 and i < 3 * height else 2 if i % 3 == 2 and i < 3 * width else 0 for i in range(half)
    ]
    angles = torch.arange(half, device=qkv.device)
    table = front.cos_sin.double()[positions if positions.dim() == 2 else positions.expand(3, -1)]
    cosines, sines = table[axes, :, angles].T[:, None], table[axes, :, half + angles].T[:, None]

    def turned(x: Tensor, norm: Any) -> Tensor:
        x = x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
        x = x * (norm.weight.double() + front.plus_one)
        one, two, rest = x.split((half, half, size - 2 * half), dim=-1)
        return torch.cat((one * cosines - two * sines, two * cosines + one * sines, rest), dim=-1)

    return [*gates, turned(q, front.q_norm), turned(k, front.k_norm), v]


def checks(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[Check]:
    """Compare what our kernels run of a loaded model; ``dtype``: that of its activations.

    A kernel that raises has failed. CUDA's own errors come later, and are not caught here.
    """
    found: dict[str, list[functools.partial[Iterator[Check]]]] = {}
    merged = {
        id(part)
        for module in model.modules()
        if module.__dict__.get("gb10_gdn") is not None
        for part in (module.in_proj_qkvz, module.in_proj_ba)
    }

    def add(operation: str, compare: Callable[..., Iterator[Check]], *given: Any) -> None:
        found.setdefault(operation, []).append(functools.partial(compare, *given))

    for name, module in model.named_modules():
        own = module.__dict__
        made, core, block = dense_of(module), own.get("gb10_gdn"), own.get("gb10_block")
        front = own.get("gb10_front")
        if core is not None:
            if core.dense is not None and not isinstance(core.dense, Plain):
                add(core.dense.operation, _requantised, f"{name}.in_proj", core.dense, dtype)
            add("gdn_decode", _gdn, name, core, module.hidden_size, dtype)
        if made is not None and not isinstance(made, Plain) and id(module) not in merged:
            add(made.operation, _requantised, name, made, dtype)
        if "gb10_native" in own:
            add("nvfp4_linear", _native, name, module, dtype)
        if block is not None and hasattr(module, "mlp"):
            add("router", _router, name, block)
            add("nvfp4_moe", _experts, name, block)
        if own.get("gb10_norm"):
            add("norm", _norm, f"{name}.input_layernorm", module.input_layernorm)
        if front is not None and hasattr(module, "qkv_proj"):
            add("attention_front", _front, name, front)
    for operation, layers in found.items():
        for one in dict.fromkeys((layers[0], layers[-1])):
            try:
                yield from one()
            except RuntimeError as error:
                said = " ".join(str(error).split())
                yield Check(operation, f"{one.args[0]} ({said})", 0, math.nan, EXACT)


def run(model: torch.nn.Module, dtype: torch.dtype, wanted: SelfTest) -> None:
    """Do it, say so in one line of the log, and refuse the start where a result is too far off.

    Raises Refused, unless ``wanted`` is REPORT.
    """
    began = time.monotonic()
    with torch.inference_mode(), dispatch.silent():
        done = list(checks(model, dtype))
    if not done:
        return
    seconds = time.monotonic() - began
    wrong = [check for check in done if not check.passed]
    worst = max(done, key=lambda check: check.error / check.limit)
    logger.info(
        "%s%d comparisons in %.1f s, %d failed; the one nearest to its limit: %s",
        *(log.SELF_TEST, len(done), seconds, len(wrong), worst.words),
    )
    for check in wrong[1:]:
        logger.warning("%s%s", log.SELF_TEST, check.words)
    if wrong and wanted is SelfTest.REPORT:
        logger.warning("%s%s", log.SELF_TEST, wrong[0].words)
    elif wrong:
        refuse(
            f"our kernels are not right on this GPU: {wrong[0].words}; --engine stock serves with vLLM's "
            "own, and GB10_SELF_TEST=report serves all the same"
        )
