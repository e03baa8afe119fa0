"""The kernels as a model runs them: all layers in one CUDA graph, with and without experts and router.

A layer is: residual and norm, in_proj (``nvfp4_gemv``), a gate in the place of the mixer's core, out_proj,
residual and norm, router, experts (``moe_decode`` with the shared expert). The fused chain has
``route_experts`` in the place of the second residual and norm, and of the router. Every replay has fresh
tokens and every layer a router of its own, so the chosen experts differ. The time of the experts is the
difference of two graphs, and so is that of the residual, norm and router before them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from gb10_lab.kernel_bench import adapters, data
from gb10_lab.kernel_bench.figures import Spread, agree, floor_us, gbps, rotation
from gb10_lab.kernel_bench.shapes import Layers, moe_bytes
from gb10_lab.kernel_bench.suite import LIMIT, ROUTER_LIMIT, Settings
from gb10_lab.kernel_bench.timing import Recorded, capture, in_turns

FLOAT32_LIMIT = 1e-5
"""Largest relative L2 error of the router's logits and weights."""
FUSED = "fused"
FRESH = 32
"""Sets of tokens that replays take in turn."""


class Glue(Protocol):
    """The kernels that are not ours; ``gb10_lab.kernel_bench.glue`` says what they do."""

    EPSILON: float

    def add_norm(
        self, x: torch.Tensor, y: torch.Tensor, total: torch.Tensor, normed: torch.Tensor
    ) -> None: ...

    def gate(self, z: torch.Tensor, out: torch.Tensor) -> None: ...

    def score(self, x: torch.Tensor, router: torch.Tensor, logits: torch.Tensor) -> None: ...

    def choose(
        self, logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, multiplier: torch.Tensor
    ) -> None: ...


@dataclass(frozen=True)
class ChainEntry:
    """All layers at one number of tokens; times are microseconds a layer.

    ``experts_us``: the chain's median without that of the chain ``without`` experts; ``router_us``: that
    without the chain ``bare`` of the second residual and norm, and of the router. ``router`` is ``FUSED`` or
    empty. ``distinct_experts`` and ``bytes_moved`` (of the experts) are means over the layers of a replay.
    ``errors`` are relative L2 of the steps of the last layer.
    """

    model: str
    shape: str
    layers: int
    tokens: int
    distinct_experts: float
    bytes_moved: int
    chain: Spread
    again: Spread
    repeat_agrees: bool
    without: Spread
    bare: Spread
    experts_us: float
    router_us: float
    gbps: float
    percent_of_read: float
    floor_us: float
    errors: dict[str, float]
    router: str = ""


@dataclass(frozen=True)
class Weights:
    """A router for each layer, BF16 ``[layers, experts + 1, hidden]`` (the last row is the shared expert's).

    The other weights are those of so many layers that the L2 cache holds none when its turn comes again.
    """

    shape: Layers
    in_proj: list[data.Nvfp4]
    out_proj: list[data.Nvfp4]
    moe: list[data.MoeWeights]
    routers: torch.Tensor


def draw(shape: Layers, device: torch.device, l2_bytes: int) -> Weights:
    """Random weights. Layers take them in turn."""

    def one() -> tuple[data.Nvfp4, data.Nvfp4, data.MoeWeights]:
        dense = [data.nvfp4(each.rows, each.columns, device) for each in (shape.in_proj, shape.out_proj)]
        return dense[0], dense[1], data.moe(shape.moe, device)

    first = one()
    read = data.moved(first[:2]) + moe_bytes(shape.moe, 1, shape.moe.topk)
    kept = [first, *(one() for _ in range(min(shape.layers, rotation(read, l2_bytes)) - 1))]
    used = [kept[i % len(kept)] for i in range(shape.layers)]
    return Weights(
        shape,
        [each[0] for each in used],
        [each[1] for each in used],
        [each[2] for each in used],
        data.routers(shape.layers, shape.moe.experts, shape.moe.hidden, device),
    )


class Chain:
    """Buffers and calls of all layers. After ``run`` the buffers hold the steps of the last layer."""

    def __init__(self, weights: Weights, tokens: int, glue: Glue, fused: bool = False) -> None:
        shape, device = weights.shape, weights.routers.device
        self.weights, self.glue, self.fused = weights, glue, fused
        hidden, experts, topk = shape.moe.hidden, shape.moe.experts, shape.moe.topk

        def empty(*size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
            return torch.full(size, -1, dtype=dtype, device=device)

        self._tokens = itertools.cycle(data.activations(tokens, hidden, device) for _ in range(FRESH))
        self.residual, self.middle = empty(tokens, hidden), empty(tokens, hidden)
        self.x, self.x_moe = empty(tokens, hidden), empty(tokens, hidden)
        self.mixed = empty(tokens, shape.out_proj.columns)
        self.logits = empty(tokens, experts + 1, dtype=torch.float32)
        self.ids = empty(shape.layers, tokens, topk, dtype=torch.int32)
        self.shares = empty(shape.layers, tokens, topk, dtype=torch.float32)
        self.multiplier = empty(tokens, dtype=torch.float32)
        self._nothing = torch.zeros_like(self.residual)
        self.routed = [data.Routing(*each) for each in zip(self.ids, self.shares, strict=True)]
        self._in_proj = adapters.nvfp4_gemv(self.x, weights.in_proj)
        self._out_proj = adapters.nvfp4_gemv(self.mixed, weights.out_proj)
        self._experts = adapters.moe_decode(self.x_moe, weights.moe, self.routed, self.multiplier)
        self.z = self.y = self.out = self._nothing
        self._router = None
        if fused:
            y = self._out_proj.run(0)  # for the place of its output
            outputs = (self.x_moe, self.residual, self.multiplier)
            self._router = adapters.route_experts(y, self.middle, weights.routers, self.routed, *outputs)

    def refresh(self) -> None:
        """Fresh tokens."""
        self.residual.copy_(next(self._tokens))

    def run(self, experts: bool, router: bool = True) -> None:
        """Queue all layers."""
        y = self._nothing
        for i, routed in enumerate(self.routed):
            self.glue.add_norm(self.residual, y, self.middle, self.x)
            self.z = self._in_proj.run(i)
            self.glue.gate(self.z, self.mixed)
            self.y = self._out_proj.run(i)
            if router and self._router:
                self._router.run(i)
            elif router:
                self.glue.add_norm(self.middle, self.y, self.residual, self.x_moe)
                self.glue.score(self.x_moe, self.weights.routers[i], self.logits)
                self.glue.choose(self.logits, *routed, self.multiplier)
            if experts:
                y = self.out = self._experts.run(i)

    def record(self, experts: bool, router: bool = True) -> Recorded:
        """A graph of all layers; a call is a layer."""
        graph = capture(lambda: self.run(experts, router), lambda: self.run(experts, router))
        return Recorded(graph, len(self.routed), self.refresh)

    def distinct_experts(self) -> float:
        """How many experts a layer chose, the mean of all layers."""
        return sum(len(each.unique()) for each in self.ids) / len(self.ids)

    def errors(self) -> dict[str, float]:
        """The steps of the last layer that ran, each against float64 from the inputs that it had.

        Raises RuntimeError when one is wrong.
        """
        weights, routed = self.weights, self.routed[-1]
        total = self.middle.double() + self.y.double()
        v, g = self.z.double().chunk(3, dim=1)[1:]
        logits = data.router_logits(self.x_moe, weights.routers[-1])
        steps = {
            "norm": (self.x, data.normed(self.middle, self.glue.EPSILON), LIMIT),
            "in_proj": (self.z, data.product(self.x, weights.in_proj[-1]), LIMIT),
            "gate": (self.mixed, v * torch.nn.functional.silu(g), LIMIT),
            "out_proj": (self.y, data.product(self.mixed, weights.out_proj[-1]), LIMIT),
            "residual": (self.residual, total, LIMIT),
            "norm of the experts": (
                self.x_moe,
                data.normed(total if self.fused else self.residual, self.glue.EPSILON),
                LIMIT,
            ),
        }
        if not self.fused:
            steps["logits"] = (self.logits, logits, FLOAT32_LIMIT)
            logits = self.logits.double()
        scored = logits[:, :-1].to(torch.bfloat16).double() if self.fused else logits[:, :-1]
        best = scored.topk(routed.ids.shape[1]).values
        apart = (scored.gather(1, routed.ids.long()) - best).abs()
        if bool((apart > (ROUTER_LIMIT * best.abs() if self.fused else 0)).any()):
            raise RuntimeError("the chain's router did not choose the largest logits")
        limit = ROUTER_LIMIT if self.fused else FLOAT32_LIMIT
        experts = data.moe_reference(self.x_moe, weights.moe[-1], routed, self.multiplier)
        steps |= {
            "router weights": (routed.weights, best.softmax(dim=1), limit),
            "multiplier": (self.multiplier, logits[:, -1].sigmoid(), FLOAT32_LIMIT),
            "experts": (self.out, experts, LIMIT),
        }
        found = {}
        for name, (out, wanted, limit) in steps.items():
            allowed = data.limit_for(wanted, limit) if out.dtype == torch.bfloat16 else limit
            found[name] = data.relative_error(out, wanted)
            if not found[name] <= allowed:
                raise RuntimeError(
                    f"the chain's {name} is off by {found[name]:.1e}; {allowed:.0e} is allowed"
                )
        return found


def measure(chain: Chain, settings: Settings) -> ChainEntry:
    """Check the last layer of a replay, then time the chain twice, without experts, and without router too.

    Raises RuntimeError when a step is wrong, or two replays of the same tokens differ.
    """
    shape, tokens = chain.weights.shape, chain.residual.shape[0]
    recorded = [
        chain.record(experts=False),
        chain.record(experts=True),
        chain.record(experts=False, router=False),
    ]
    fresh = data.activations(tokens, shape.moe.hidden, chain.residual.device)
    seen = []
    for _ in range(2):
        chain.residual.copy_(fresh)
        recorded[1].graph.replay()
        seen.append((chain.ids.clone(), chain.out.clone()))
    if not all(torch.equal(a, b) for a, b in zip(*seen, strict=True)):
        raise RuntimeError("two replays of the chain with the same tokens differ")
    errors, distinct = chain.errors(), chain.distinct_experts()
    moved = moe_bytes(shape.moe, tokens, round(distinct))
    without, first, bare, again = in_turns([*recorded, recorded[1]], settings.seconds)
    experts_us = first.median - without.median
    rate, bandwidth = gbps(moved, experts_us), settings.bandwidth
    return ChainEntry(
        model=shape.model,
        shape=shape.moe.label,
        layers=shape.layers,
        tokens=tokens,
        distinct_experts=distinct,
        bytes_moved=moved,
        chain=first,
        again=again,
        repeat_agrees=agree(first, again),
        without=without,
        bare=bare,
        experts_us=experts_us,
        router_us=without.median - bare.median,
        gbps=rate,
        percent_of_read=100 * rate / bandwidth.read_gbps,
        floor_us=floor_us(moved, bandwidth.read_gbps, 2, bandwidth.launch_us),
        errors=errors,
        router=FUSED if chain.fused else "",
    )


def entries(
    shape: Layers, tokens: Sequence[int], glue: Glue, settings: Settings, fused: Sequence[bool]
) -> Iterator[ChainEntry]:
    """Measure one set of weights at each number of tokens, each chain that ``fused`` names."""
    weights = draw(shape, settings.device, settings.l2_bytes)
    for which in fused:
        for each in tokens:
            yield measure(Chain(weights, each, glue, which), settings)
