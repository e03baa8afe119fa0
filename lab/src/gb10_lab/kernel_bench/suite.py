"""What is measured: for each kernel and shape our version, the same again, and the stock paths, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch

from gb10_lab.kernel_bench import adapters, data, gdn, stock
from gb10_lab.kernel_bench.bandwidth import Bandwidth
from gb10_lab.kernel_bench.figures import Spread, agree, floor_us, gbps, rotation
from gb10_lab.kernel_bench.shapes import (
    DENSE,
    GDN,
    MOE,
    QUANTIZE,
    STREAMING,
    STREAMING_DENSE,
    STREAMING_MOE,
    STREAMING_TOKENS,
    TOKENS,
    Dense,
    Gdn,
    Moe,
    Rows,
    activation_bytes,
    gdn_bytes,
    quantize_bytes,
    router_bytes,
)
from gb10_lab.kernel_bench.timing import Version, in_turns, record

OURS = "ours"
LIMIT = 2e-3
"""Largest relative L2 error of our BF16 outputs against float64."""
GDN_LIMIT = 4e-3
"""Of ``gdn_decode``, whose convolution and recurrent step round to BF16 before the output does."""
ROUTER_LIMIT = 1e-2
"""The same of the router's weights: its logits are rounded to BF16, and a last bit of a sum can turn one."""
STOCK_LIMITS = {"marlin": 2e-2, "bf16": 1e-2, "fp8": 6e-2, "dense": 3e-3, "vllm": 1e-2}
"""Only to show that the stock paths compute the same thing: BF16 weights and FP8 activations are rounded.
``dense`` is our nvfp4_gemv beside our sparse24_gemv; ``vllm`` the kernels of vLLM's GDN layer."""
FUSED_LIMIT = 1e-3
"""Share of bytes that may differ after SiLU: the exponential is not the reference's, so some ties differ."""

LAUNCHES = {"moe_decode": 2}
QUICK_DENSE = ("lm_head", "in_proj_qkvz", "in_proj_ba")
CORRELATED_TOKENS = (8, 16)


@dataclass(frozen=True)
class Entry:
    """One kernel at one shape. The dictionaries are by stock version; ``faster`` is its time over ours.

    ``apart`` holds times with an idle kernel before each call, which keeps calls from overlapping; the idle
    kernel's own time is taken off. ``error`` is relative L2, or for quantisation the share of wrong bytes.
    """

    kernel: str
    model: str
    shape: str
    tokens: int
    routing: str
    bytes_moved: int
    launches: int
    ours: Spread
    again: Spread
    repeat_agrees: bool
    gbps: float
    percent_of_read: float
    floor_us: float
    error: float
    stock: dict[str, Spread] = field(default_factory=dict)
    stock_error: dict[str, float] = field(default_factory=dict)
    stock_gbps: dict[str, float] = field(default_factory=dict)
    faster: dict[str, float] = field(default_factory=dict)
    apart: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """How to measure. ``seconds`` is the budget for the replays of one entry."""

    device: torch.device
    l2_bytes: int
    seconds: float
    quick: bool
    operators: tuple[str, ...]
    marlin: bool
    bandwidth: Bandwidth


@dataclass(frozen=True)
class Case:
    """An entry before it is measured: our version and the stock ones.

    ``error(i, out)`` says how far call ``i``'s output is from the right one, and how far ours may be.
    """

    kernel: str
    model: str
    shape: str
    tokens: int
    bytes_moved: int
    ours: Version
    stock: list[Version]
    error: Callable[[int, torch.Tensor], tuple[float, float]]
    routing: str = ""

    @property
    def where(self) -> str:
        """The case in one line."""
        return f"{self.kernel}, {self.model} {self.shape}, {self.tokens} tokens {self.routing}".strip()


Note = Callable[[str], None]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Job:
    """The cases of one kernel and shape, which share weights. Making them can fail like measuring them."""

    name: str
    cases: Callable[[], Iterator[Case]]


def jobs(settings: Settings, note: Note) -> Iterator[Job]:
    """All that is asked for and that the library has operators for."""
    for kernel, dense in (("nvfp4_gemv", _nvfp4), ("fp8_gemv", _fp8), ("sparse24_gemv", _sparse24)):
        for shape in _dense_shapes(kernel, settings):
            yield Job(f"{kernel} {shape.model} {shape.label}", partial(dense, shape, settings, note))
    for layer in _moe_shapes(settings):
        yield Job(f"moe_decode {layer.model} {layer.label}", partial(_moe, layer, settings, note))
    if "gdn_decode" in settings.operators:
        for heads in GDN[:1] if settings.quick else GDN:
            yield Job(f"gdn_decode {heads.model} {heads.label}", partial(_gdn, heads, settings, note))
    for layer in _router_shapes(settings):
        yield Job(f"route_experts {layer.model} {layer.label}", partial(_router, layer, settings))
    for kernel in ("quantize_nvfp4", "silu_mul_quantize_nvfp4"):
        if kernel in settings.operators:
            for rows in QUANTIZE:
                yield Job(f"{kernel} {rows.model} {rows.label}", partial(_quantize, kernel, rows, settings))


def measure(case: Case, settings: Settings, note: Note) -> Entry:
    """Check the versions of a case, then time them in turns.

    A stock version that torch or vLLM refuses is left out, and noted. Raises RuntimeError when a version
    gives wrong numbers, or ours differs from run to run.
    """
    error = check(case, case.ours)
    others, stock_error = [], {}
    for version in case.stock:
        try:
            version.run(0)
            torch.cuda.synchronize()
        except (RuntimeError, ValueError, AssertionError) as refusal:
            note(f"{case.where}: {version.name} left out, {str(refusal).splitlines()[0]}")
            continue
        if version.name in STOCK_LIMITS:
            stock_error[version.name] = check(case, version)
        others.append(version)
    names = [version.name for version in others]

    versions = [case.ours, case.ours, *others]
    first, second, *rest = in_turns(
        [record(version, case.bytes_moved) for version in versions], settings.seconds
    )
    apart: dict[str, float] = {}
    if case.tokens == 1 and case.model != STREAMING:
        separate = [record(version, case.bytes_moved, apart=True) for version in (case.ours, *others)]
        times = in_turns(separate, settings.seconds)
        idle = settings.bandwidth.launch_us
        apart = {name: t.median - idle for name, t in zip((OURS, *names), times, strict=True)}

    launches = LAUNCHES.get(case.kernel, 1)
    by_name = dict(zip(names, rest, strict=True))
    rate = gbps(case.bytes_moved, first.median)
    return Entry(
        kernel=case.kernel,
        model=case.model,
        shape=case.shape,
        tokens=case.tokens,
        routing=case.routing,
        bytes_moved=case.bytes_moved,
        launches=launches,
        ours=first,
        again=second,
        repeat_agrees=agree(first, second),
        gbps=rate,
        percent_of_read=100 * rate / settings.bandwidth.read_gbps,
        floor_us=floor_us(
            case.bytes_moved, settings.bandwidth.read_gbps, launches, settings.bandwidth.launch_us
        ),
        error=error,
        stock=by_name,
        stock_error=stock_error,
        stock_gbps={name: gbps(case.bytes_moved, time.median) for name, time in by_name.items()},
        faster={name: time.median / first.median for name, time in by_name.items()},
        apart=apart,
    )


def check(case: Case, version: Version) -> float:
    """Run the first and the last copy over poisoned output and give the larger error.

    Raises RuntimeError when it is too large or NaN, and when ours gives other bits the second time.
    """
    worst = 0.0
    for i in sorted({0, version.copies - 1}):
        out = version.run(i)
        out.fill_(float("nan") if out.is_floating_point() else 0xAA)
        version.restore()
        torch.cuda.synchronize()
        out = version.run(i).clone()
        version.restore()
        torch.cuda.synchronize()
        if version.name == OURS and not torch.equal(_bits(out), _bits(version.run(i))):
            raise RuntimeError(f"{case.where}: two runs gave different bits")
        version.restore()
        error, limit = case.error(i, out)
        limit = STOCK_LIMITS.get(version.name, limit)
        if not error <= limit:
            raise RuntimeError(f"{case.where}: {version.name} is off by {error:.1e}; {limit:.0e} is allowed")
        worst = max(worst, error)
    return worst


def _bits(out: torch.Tensor) -> torch.Tensor:
    return out.view(torch.int16) if out.dtype == torch.bfloat16 else out


def _dense_shapes(kernel: str, settings: Settings) -> list[Dense]:
    if kernel not in settings.operators:
        return []
    real = [s for s in DENSE if not settings.quick or (s.model == DENSE[0].model and s.name in QUICK_DENSE)]
    return [STREAMING_DENSE[kernel], *real]


def _moe_shapes(settings: Settings) -> list[Moe]:
    if "moe_decode" not in settings.operators:
        return []
    return [STREAMING_MOE, *(MOE[:1] if settings.quick else MOE)]


def _router_shapes(settings: Settings) -> list[Moe]:
    if "route_experts" not in settings.operators:
        return []
    return list(MOE[:1] if settings.quick else MOE[1:])


def tokens_of(model: str, settings: Settings) -> tuple[int, ...]:
    """The numbers of tokens that a model's shapes are measured at."""
    if model == STREAMING:
        return STREAMING_TOKENS
    return (1, 4) if settings.quick else TOKENS


def _nvfp4(shape: Dense, settings: Settings, note: Note) -> Iterator[Case]:
    weight = data.nvfp4(shape.rows, shape.columns, settings.device)
    copies = rotation(data.moved(weight), settings.l2_bytes)
    cloned = [data.Nvfp4(*(t.clone() for t in weight)) for _ in range(copies)]
    wide = _wide_copies(weight, settings)
    marlin = _marlin(lambda: stock.Marlin(shape, weight, copies), settings, note)
    torch.cuda.synchronize()
    for tokens in tokens_of(shape.model, settings):
        x = data.activations(tokens, shape.columns, settings.device)
        others = [stock.bf16(x, wide)]
        if marlin:
            others.insert(0, marlin.version(x))
        moved = data.moved(weight) + activation_bytes(tokens, shape.columns, shape.rows)
        ours = adapters.nvfp4_gemv(x, cloned)
        error = _against(data.product(x, weight))
        yield Case("nvfp4_gemv", shape.model, shape.label, tokens, moved, ours, others, error)


def _fp8(shape: Dense, settings: Settings, _: Note) -> Iterator[Case]:
    weight = data.fp8(shape, settings.device)
    copies = rotation(data.moved(weight), settings.l2_bytes)
    cloned = [data.Fp8(*(t.clone() for t in weight)) for _ in range(copies)]
    wide = _wide_copies(weight, settings)
    torch.cuda.synchronize()
    for tokens in tokens_of(shape.model, settings):
        x = data.activations(tokens, shape.columns, settings.device)
        moved = data.moved(weight) + activation_bytes(tokens, shape.columns, shape.rows)
        ours = adapters.fp8_gemv(x, cloned)
        others = [stock.fp8(x, cloned), stock.bf16(x, wide)]
        error = _against(data.product(x, weight))
        yield Case("fp8_gemv", shape.model, shape.label, tokens, moved, ours, others, error)


def _sparse24(shape: Dense, settings: Settings, note: Note) -> Iterator[Case]:
    packed, weight = data.sparse24(shape, settings.device)
    copies = rotation(data.moved(packed), settings.l2_bytes)
    cloned = [data.Sparse24(*(t.clone() for t in packed)) for _ in range(copies)]
    dense = [data.Nvfp4(*(t.clone() for t in weight)) for _ in range(copies)]
    marlin = _marlin(lambda: stock.Marlin(shape, weight, copies), settings, note)
    torch.cuda.synchronize()
    for tokens in tokens_of(shape.model, settings):
        x = data.activations(tokens, shape.columns, settings.device)
        moved = data.moved(packed) + activation_bytes(tokens, shape.columns, shape.rows)
        ours = adapters.sparse24_gemv(x, shape.rows, cloned)
        others = [marlin.version(x)] if marlin else []
        if "nvfp4_gemv" in adapters.held():
            others.append(replace(adapters.nvfp4_gemv(x, dense), name="dense"))
        error = _against(data.product(x, weight))
        yield Case("sparse24_gemv", shape.model, shape.label, tokens, moved, ours, others, error)


def _marlin(make: Callable[[], Made], settings: Settings, note: Note) -> Made | None:
    """Marlin with its weights prepared, or a note why not."""
    if not settings.marlin:
        return None
    try:
        made = make()
        torch.cuda.synchronize()
    except (RuntimeError, ValueError, AssertionError, TypeError) as refusal:
        note(f"without Marlin: {str(refusal).splitlines()[0]}")
        return None
    return made


def _wide_copies(weight: data.Nvfp4 | data.Fp8, settings: Settings) -> list[torch.Tensor]:
    wide = stock.bf16_weight(weight)
    return [wide.clone() for _ in range(rotation(data.moved(wide), settings.l2_bytes))]


def _router(shape: Moe, settings: Settings) -> Iterator[Case]:
    weight_bytes = router_bytes(shape)
    copies = rotation(weight_bytes, settings.l2_bytes)
    routers = data.routers(copies, shape.experts, shape.hidden, settings.device)
    torch.cuda.synchronize()
    for tokens in tokens_of(shape.model, settings):
        x, residual = (data.activations(tokens, shape.hidden, settings.device) for _ in range(2))
        routed = data.routing(shape, tokens, False, settings.device)
        outputs = (torch.zeros_like(x), torch.zeros_like(x), torch.zeros(tokens, device=settings.device))
        ours = adapters.route_experts(x, residual, routers, [routed] * copies, *outputs)
        error = _against_router(x, residual, routers, shape.topk)
        label = f"router {shape.experts}/{shape.topk} {shape.hidden}"
        moved = weight_bytes + data.moved((x, residual, *routed, *outputs))
        yield Case("route_experts", shape.model, label, tokens, moved, ours, [], error)


def _against_router(
    x: torch.Tensor, residual: torch.Tensor, routers: torch.Tensor, topk: int
) -> Callable[[int, torch.Tensor], tuple[float, float]]:
    def error(i: int, out: torch.Tensor) -> tuple[float, float]:
        wanted = data.router_weights(x, residual, routers[i], topk, adapters.EPSILON)
        return data.relative_error(out, wanted), ROUTER_LIMIT

    return error


def _against(wanted: torch.Tensor) -> Callable[[int, torch.Tensor], tuple[float, float]]:
    limit = data.limit_for(wanted, LIMIT)
    return lambda _, out: (data.relative_error(out, wanted), limit)


def _moe(shape: Moe, settings: Settings, note: Note) -> Iterator[Case]:
    weights = data.moe(shape, settings.device)
    per_expert = data.moved((weights.w13, weights.w2)) // shape.experts
    shared = data.moved((weights.shared_w13, weights.shared_w2))
    copies = rotation(per_expert * shape.topk + shared, settings.l2_bytes)
    cloned = [data.clone(weights) for _ in range(copies)]
    marlin = _marlin(lambda: stock.MarlinMoe(shape, weights, copies), settings, note)
    torch.cuda.synchronize()
    for tokens in tokens_of(shape.model, settings):
        x = data.activations(tokens, shape.hidden, settings.device)
        many = tokens in CORRELATED_TOKENS and shape.model != STREAMING
        for routing in ("uniform", "correlated") if many else ("uniform",):
            routed = [
                data.routing(shape, tokens, routing == "correlated", settings.device) for _ in range(copies)
            ]
            distinct = sum(len(set(each.ids.flatten().tolist())) for each in routed) / copies
            moved = round(distinct * per_expert) + shared + data.moved((x, x)) + data.moved(routed[0])
            ours = adapters.moe_decode(x, cloned, routed)
            others = [marlin.version(x, routed)] if marlin else []
            error = _against_layer(x, weights, routed)
            yield Case("moe_decode", shape.model, shape.label, tokens, moved, ours, others, error, routing)


def _against_layer(
    x: torch.Tensor, weights: data.MoeWeights, routed: list[data.Routing]
) -> Callable[[int, torch.Tensor], tuple[float, float]]:
    def error(i: int, out: torch.Tensor) -> tuple[float, float]:
        wanted = data.moe_reference(x, weights, routed[i])
        return data.relative_error(out, wanted), data.limit_for(wanted, LIMIT)

    return error


def _gdn(shape: Gdn, settings: Settings, note: Note) -> Iterator[Case]:
    dtype = torch.float32 if shape.state_bytes == 4 else torch.bfloat16
    why_not = gdn.vllm_unavailable()
    if why_not:
        note(f"gdn_decode without vLLM's kernels: {why_not}")
    for tokens in tokens_of(shape.model, settings):
        moved = gdn_bytes(shape, tokens)
        copies = rotation(moved, settings.l2_bytes)
        layers = [gdn.layer(shape, tokens, settings.device, dtype) for _ in range(copies)]
        mixed = data.activations(tokens, shape.columns, settings.device)
        wanted = {i: gdn.reference(shape, mixed, layers[i]) for i in {0, copies - 1}}
        ours = adapters.gdn_decode(shape, mixed, layers)
        others = [] if why_not else [gdn.vllm_version(shape, mixed, layers)]
        torch.cuda.synchronize()
        error = _against_gdn(wanted)
        yield Case("gdn_decode", shape.model, shape.label, tokens, moved, ours, others, error)


def _against_gdn(wanted: dict[int, torch.Tensor]) -> Callable[[int, torch.Tensor], tuple[float, float]]:
    return lambda i, out: (data.relative_error(out, wanted[i]), data.limit_for(wanted[i], GDN_LIMIT))


def _quantize(kernel: str, shape: Rows, settings: Settings) -> Iterator[Case]:
    fused = kernel == "silu_mul_quantize_nvfp4"
    moved = quantize_bytes(shape, fused)
    columns = shape.columns * (2 if fused else 1)
    copies = rotation(moved, settings.l2_bytes)
    x = [data.activations(shape.rows, columns, settings.device) for _ in range(copies)]
    halves = [
        torch.randint(0, 256, (2, moved // 2), dtype=torch.uint8, device=settings.device)
        for _ in range(copies)
    ]
    copy = Version("copy", lambda i: halves[i][0].copy_(halves[i][1]), copies)
    ours = adapters.quantize(x, fused)
    torch.cuda.synchronize()

    def error(i: int, out: torch.Tensor) -> tuple[float, float]:
        wanted = data.quantized(x[i], fused, adapters.QUANTIZE_SCALE)
        return data.differing(out, wanted), FUSED_LIMIT if fused else 0.0

    yield Case(kernel, shape.model, shape.label, shape.rows, moved, ours, [copy], error)
