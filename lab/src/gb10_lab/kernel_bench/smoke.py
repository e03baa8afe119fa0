"""Command line: `python -m gb10_lab kernel-smoke`. Each operator once on small, awkward shapes.

Small enough to run under compute-sanitizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from gb10.nvfp4 import quantize_searched
from gb10_lab.kernel_bench import adapters, data, gdn
from gb10_lab.kernel_bench.shapes import Dense, Gdn, Moe
from gb10_lab.kernel_bench.suite import FUSED_LIMIT, GDN_LIMIT, LIMIT, ROUTER_LIMIT
from gb10_lab.kernel_bench.timing import Version

DENSE = (Dense("small", "narrow", 40, 320), Dense("small", "tall", 1000, 2048))
GDN = (
    Gdn("small", "gdn", 2, 4, 64, 64, interleaved=True),
    Gdn("small", "gdn", 2, 6, 128, 128, interleaved=False, state_bytes=4),
)
MOE = (Moe("small", "moe", 16, 4, 256, 128), Moe("small", "moe", 16, 4, 320, 192, shared=64))
ROUTERS = ((256, 16, 4), (2304, 330, 7))
"""Hidden, experts, topk."""
TOKENS = (1, 3, 16)
MANY_TOKENS = (2, 40, 300)
NORM_LIMIT = 4e-3
"""A norm without "+ 1" rounds before the weight and after."""
GROUPED_LIMIT = 6e-3
"""``moe_grouped`` rounds what comes out of the activation, and each expert's part, to the dtype of x."""

Check = Callable[[torch.Tensor], tuple[float, float]]
"""An output's error, and the largest that is right."""


def run() -> int:
    """Run every operator once on small shapes, checked, not timed. The exit status is 1 when one is wrong."""
    device, held = adapters.ready()
    torch.manual_seed(7)
    wrong = 0
    for operator, what, version, check in _calls(held, device):
        torch.cuda.synchronize()
        version.run(0).fill_(float("nan") if operator.endswith(("gemv", "decode", "grouped")) else 0xAA)
        version.restore()
        found, limit = check(version.run(0))
        torch.cuda.synchronize()
        right = found <= limit
        wrong += not right
        print(f"{operator:<26}{what:<28}{found:9.1e}  {'ok' if right else 'WRONG'}", flush=True)
    return 1 if wrong else 0


def _calls(held: list[str], device: torch.device) -> Iterator[tuple[str, str, Version, Check]]:
    for tokens in TOKENS:
        for shape in DENSE:
            what = f"{shape.label}, {tokens} tokens"
            x = data.activations(tokens, shape.columns, device)
            if "nvfp4_gemv" in held:
                nvfp4 = data.nvfp4(shape.rows, shape.columns, device)
                yield (
                    "nvfp4_gemv",
                    what,
                    adapters.nvfp4_gemv(x, [nvfp4]),
                    _near(data.product(x, nvfp4)),
                )
            if "fp8_gemv" in held:
                fp8 = data.fp8(shape, device)
                yield "fp8_gemv", what, adapters.fp8_gemv(x, [fp8]), _near(data.product(x, fp8))
            if "sparse24_gemv" in held:
                packed, kept = data.sparse24(shape, device)
                version = adapters.sparse24_gemv(x, shape.rows, [packed])
                yield "sparse24_gemv", what, version, _near(data.product(x, kept))
        if "moe_decode" in held:
            yield from _experts("moe_decode", tokens, LIMIT, device)
        if "gdn_decode" in held:
            for heads in GDN:
                dtype = torch.float32 if heads.state_bytes == 4 else torch.bfloat16
                states = gdn.layer(heads, tokens, device, dtype)
                x = data.activations(tokens, heads.columns, device)
                near = _near(gdn.reference(heads, x, states), GDN_LIMIT)
                version = adapters.gdn_decode(heads, x, [states])
                yield "gdn_decode", f"{heads.label}, {tokens} tokens", version, near
        if "route_experts" in held:
            yield from _routers(tokens, device)
    if hasattr(torch.ops.gb10, "moe_grouped"):
        for tokens in MANY_TOKENS:
            yield from _experts("moe_grouped", tokens, GROUPED_LIMIT, device)
    for tokens in TOKENS:
        yield from _norms(tokens, device)
        yield from _fronts(tokens, device)
    for operator, fused in (("quantize_nvfp4", False), ("silu_mul_quantize_nvfp4", True)):
        if operator in held:
            x = data.activations(130, 96 * (2 if fused else 1), device)
            version = adapters.quantize([x], fused)
            wanted = data.quantized(x, fused, adapters.QUANTIZE_SCALE)
            yield operator, "130x96", version, _same(wanted, FUSED_LIMIT if fused else 0.0)
    if hasattr(torch.ops.gb10, "nvfp4_search"):
        weight = data.activations(130, 1040, device)
        searched = quantize_searched(weight, adapters.QUANTIZE_SCALE)
        yield "nvfp4_search", "130x1040", adapters.nvfp4_search(weight), _same(searched.packed, 0.0)


def _experts(
    operator: str, tokens: int, limit: float, device: torch.device
) -> Iterator[tuple[str, str, Version, Check]]:
    for layer in MOE:
        weights, routed = data.moe(layer, device), data.routing(layer, tokens, False, device)
        x = data.activations(tokens, layer.hidden, device)
        version = getattr(adapters, operator)(x, [weights], [routed])
        near = _near(data.moe_reference(x, weights, routed), limit)
        yield operator, f"{layer.label}, {tokens} tokens", version, near


def _routers(tokens: int, device: torch.device) -> Iterator[tuple[str, str, Version, Check]]:
    """The weights are looked at: they stand behind everything else."""
    for hidden, experts, topk in ROUTERS:
        x, residual = (data.activations(tokens, hidden, device) for _ in range(2))
        router = data.routers(1, experts, hidden, device)
        shares = torch.zeros((tokens, topk), device=device)
        routed = data.Routing(torch.zeros((tokens, topk), dtype=torch.int32, device=device), shares)
        outputs = (torch.zeros_like(x), torch.zeros_like(x), torch.zeros(tokens, device=device))
        version = adapters.route_experts(x, residual, router, [routed], *outputs)
        wanted = data.router_weights(x, residual, router[0], topk, adapters.EPSILON)
        what = f"{experts}/{topk} {hidden}, {tokens} tokens"
        yield "route_experts", what, version, _near(wanted, ROUTER_LIMIT)


def _norms(tokens: int, device: torch.device) -> Iterator[tuple[str, str, Version, Check]]:
    for hidden in (256, 2056):
        x, residual, weight = (data.activations(rows, hidden, device) for rows in (tokens, tokens, 1))
        normed, total = torch.zeros_like(x), torch.zeros_like(x)

        def run(
            _: int, given: tuple[torch.Tensor, ...] = (x, residual, weight[0], normed, total)
        ) -> torch.Tensor:
            *ins, normed, total = given
            torch.ops.gb10.add_norm(*ins, adapters.EPSILON, False, normed, total)
            return normed

        wide = x.double() + residual.double()
        wanted = wide * (wide.square().mean(-1, keepdim=True) + adapters.EPSILON).rsqrt() * weight.double()
        yield "add_norm", f"{hidden}, {tokens} tokens", Version("ours", run, 1), _near(wanted, NORM_LIMIT)


def _fronts(tokens: int, device: torch.device) -> Iterator[tuple[str, str, Version, Check]]:
    """Six heads of 64 with gates, one of k and v, an E4M3 cache; the cosines turn nothing. Then the gate."""
    heads, size, blocks = 6, 64, 3
    qkv = data.activations(tokens, (2 * heads + 2) * size, device)
    one = torch.ones(1, device=device)
    weight = torch.ones(size, dtype=torch.bfloat16, device=device)
    cos_sin = torch.cat((torch.ones(20, 8), torch.zeros(20, 8)), dim=1).to(qkv)
    positions, slots = torch.arange(tokens, device=device), torch.arange(tokens, device=device) - 1
    query = torch.zeros(tokens, heads * size, dtype=qkv.dtype, device=device)
    cache = torch.zeros(blocks, 1, tokens, 2 * size, dtype=torch.uint8, device=device)
    places = cache.transpose(1, 2).split(size, dim=-1)

    def run(_: int) -> torch.Tensor:
        norm = (weight, weight, adapters.EPSILON, False)
        where = (cos_sin, positions, 0, 0, heads, 1, True, query, None, *places, slots)
        torch.ops.gb10.attention_front(qkv, *norm, *where, None, one, one)
        return query

    units = qkv[:, : 2 * heads * size].unflatten(1, (heads, 2, size))
    q = units[:, :, 0].double()
    wanted = q * (q.square().mean(-1, keepdim=True) + adapters.EPSILON).rsqrt()
    yield "attention_front", f"{tokens} tokens", Version("ours", run, 1), _near(wanted.flatten(1), NORM_LIMIT)
    before = data.activations(tokens, heads * size, device).view(tokens, heads, size)
    out = before.clone()

    def gate(_: int) -> torch.Tensor:
        torch.ops.gb10.attention_gate(out.copy_(before), units[:, :, 1])
        return out

    gated = before.double() * units[:, :, 1].double().sigmoid()
    yield "attention_gate", f"{tokens} tokens", Version("ours", gate, 1), _near(gated)


def _near(wanted: torch.Tensor, least: float = LIMIT) -> Check:
    limit = data.limit_for(wanted, least)
    return lambda out: (data.relative_error(out, wanted), limit)


def _same(wanted: torch.Tensor, limit: float) -> Check:
    return lambda out: (data.differing(out, wanted), limit)
