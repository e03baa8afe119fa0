"""The chain of layers without a GPU: torch in place of the kernels, a clock that counts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gb10_lab.kernel_bench import adapters, chain, data, report, shapes, suite
from gb10_lab.kernel_bench.bandwidth import Bandwidth
from gb10_lab.kernel_bench.figures import spread
from gb10_lab.kernel_bench.timing import Version

CPU = torch.device("cpu")
SHAPE = shapes.Layers(
    shapes.Dense("any", "in_proj", 192, 64),
    shapes.Dense("any", "out_proj", 64, 64),
    shapes.Moe("any", "moe", 16, 3, 64, 32, shared=32),
    layers=4,
)
CEILINGS = Bandwidth(4000.0, spread([500.0] * 3), 4, 3900.0, spread([510.0] * 3), 2**31, 2**30, 1.5, 3000.0)
SETTINGS = suite.Settings(CPU, 1 << 14, 0.1, False, (), False, CEILINGS)


class TorchGlue:
    """What ``gb10_lab.kernel_bench.glue`` computes; ``wrong`` names an output that is 1 % too large."""

    EPSILON = 1e-6

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong

    def _put(self, name: str, out: torch.Tensor, value: torch.Tensor) -> None:
        out.copy_(value * 1.01 if name == self.wrong else value)

    def add_norm(self, x: torch.Tensor, y: torch.Tensor, total: torch.Tensor, normed: torch.Tensor) -> None:
        self._put("total", total, x.float() + y.float())
        wide = total.float()
        self._put("normed", normed, wide * (wide.square().mean(dim=1, keepdim=True) + self.EPSILON).rsqrt())

    def gate(self, z: torch.Tensor, out: torch.Tensor) -> None:
        _, v, g = z.float().chunk(3, dim=1)
        self._put("gate", out, v * torch.nn.functional.silu(g))

    def score(self, x: torch.Tensor, router: torch.Tensor, logits: torch.Tensor) -> None:
        self._put("logits", logits, x.float() @ router.float().T)

    def choose(
        self, logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, multiplier: torch.Tensor
    ) -> None:
        best = logits[:, :-1].topk(ids.shape[1], largest=self.wrong != "ids")
        ids.copy_(best.indices)
        self._put("weights", weights, best.values.softmax(dim=1))
        self._put("multiplier", multiplier, logits[:, -1].sigmoid())


def _operators(monkeypatch: pytest.MonkeyPatch, error: Callable[[], float] = lambda: 0.0) -> list[int]:
    """References in place of our kernels; ``error`` is the experts'. Gives the layers that ran them."""
    ran: list[int] = []

    def gemv(x: torch.Tensor, copies: list[data.Nvfp4]) -> Version:
        out = torch.empty((x.shape[0], copies[0].packed.shape[0]), dtype=torch.bfloat16)
        return Version("ours", lambda i: out.copy_(data.product(x, copies[i])), len(copies))

    def moe(
        x: torch.Tensor, copies: list[data.MoeWeights], routed: list[data.Routing], by: torch.Tensor
    ) -> Version:
        out = torch.empty_like(x)

        def run(i: int) -> torch.Tensor:
            ran.append(i)
            return out.copy_(data.moe_reference(x, copies[i], routed[i], by) * (1 + error()))

        return Version("ours", run, len(copies))

    def router(
        x: torch.Tensor,
        residual: torch.Tensor,
        routers: torch.Tensor,
        routed: list[data.Routing],
        normed: torch.Tensor,
        total: torch.Tensor,
        multiplier: torch.Tensor,
    ) -> Version:
        def run(i: int) -> torch.Tensor:
            wide = x.double() + residual.double()
            total.copy_(wide)
            normed.copy_(data.normed(wide, adapters.EPSILON))
            logits = data.router_logits(normed, routers[i])
            best = logits[:, :-1].to(torch.bfloat16).double().topk(routed[i].ids.shape[1])
            routed[i].ids.copy_((best.indices + (error() > 0)) % 16)
            multiplier.copy_(logits[:, -1].sigmoid())
            return routed[i].weights.copy_(best.values.softmax(dim=1))

        return Version("ours", run, len(routers))

    monkeypatch.setattr(adapters, "route_experts", router)
    monkeypatch.setattr(adapters, "nvfp4_gemv", gemv)
    monkeypatch.setattr(adapters, "moe_decode", moe)
    return ran


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs that run their calls at each replay, and times of 10, 30, 7 and 31 us a layer."""
    torch.manual_seed(11)
    monkeypatch.setattr(chain, "capture", lambda calls, _: SimpleNamespace(replay=calls))
    times = [spread([us] * 9) for us in (10.0, 30.0, 7.0, 31.0)]
    monkeypatch.setattr(chain, "in_turns", lambda recorded, _s: times[: len(recorded)])


def _chain(tokens: int, wrong: str = "", fused: bool = False) -> chain.Chain:
    return chain.Chain(chain.draw(SHAPE, CPU, SETTINGS.l2_bytes), tokens, TorchGlue(wrong), fused)


@pytest.mark.parametrize("tokens", [1, 5])
def test_every_step_is_checked_and_the_experts_are_the_difference(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _operators(monkeypatch)
    entry = chain.measure(_chain(tokens), SETTINGS)
    assert (entry.layers, entry.tokens, entry.experts_us, entry.router_us) == (4, tokens, 20.0, 3.0)
    assert set(entry.errors) >= {"norm", "in_proj", "gate", "out_proj", "logits", "router weights", "experts"}
    assert 0 < max(entry.errors.values()) < 3e-3
    assert SHAPE.moe.topk <= entry.distinct_experts <= min(16, 3 * tokens)
    assert entry.bytes_moved == shapes.moe_bytes(SHAPE.moe, tokens, round(entry.distinct_experts))
    assert entry.gbps == pytest.approx(entry.bytes_moved / 20.0 / 1e3)
    assert not entry.repeat_agrees


@pytest.mark.parametrize("tokens", [1, 5])
def test_the_fused_chain_has_our_router_and_is_checked_too(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _operators(monkeypatch)
    entry = chain.measure(_chain(tokens, "logits", fused=True), SETTINGS)  # the glue's router is not called
    assert entry.router == chain.FUSED
    assert set(entry.errors) >= {"norm of the experts", "residual", "router weights", "multiplier", "experts"}
    assert "logits" not in entry.errors
    lines = report.chain_table([entry])
    assert "any, 4 layers, fused router" in lines
    _operators(monkeypatch, lambda: 1.0)
    with pytest.raises(RuntimeError, match="router did not choose the largest logits"):
        chain.measure(_chain(tokens, fused=True), SETTINGS)


def test_tokens_and_layers_choose_experts_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = _operators(monkeypatch)
    found = _chain(5)
    found.refresh()
    found.run(experts=True)
    first = found.ids.clone()
    assert len({str(layer.sort().values.tolist()) for layer in first}) == 4
    found.refresh()
    found.run(experts=True)
    assert not torch.equal(found.ids, first)
    assert ran == [0, 1, 2, 3] * 2
    found.run(experts=False)
    assert len(ran) == 8


def test_weights_repeat_only_after_more_than_the_cache() -> None:
    weights = chain.draw(SHAPE, CPU, 4096)
    kept = {layer.w13.packed.data_ptr() for layer in weights.moe}
    read = data.moved((weights.in_proj[0], weights.out_proj[0])) + shapes.moe_bytes(SHAPE.moe, 1, 3)
    assert len(kept) == min(SHAPE.layers, 4 * 4096 // read + 1)
    assert len({tuple(router.flatten().tolist()) for router in weights.routers}) == SHAPE.layers


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("total", "residual"),
        ("normed", "norm"),
        ("gate", "gate"),
        ("logits", "logits"),
        ("weights", "router weights"),
        ("multiplier", "multiplier"),
        ("ids", "router did not choose the largest logits"),
    ],
)
def test_a_wrong_step_is_named(wrong: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _operators(monkeypatch)
    with pytest.raises(RuntimeError, match=f"the chain's {named}"):
        chain.measure(_chain(2, wrong), SETTINGS)


def test_wrong_experts_and_replays_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _operators(monkeypatch, lambda: 0.01)
    with pytest.raises(RuntimeError, match="the chain's experts is off by 1"):
        chain.measure(_chain(2), SETTINGS)
    calls: list[Any] = []

    def moody() -> float:
        calls.append(0)
        return 0.01 * (len(calls) > 4)

    _operators(monkeypatch, moody)
    with pytest.raises(RuntimeError, match="two replays of the chain with the same tokens differ"):
        chain.measure(_chain(2), SETTINGS)


def test_the_table_fits_and_changes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    _operators(monkeypatch)
    entry = chain.measure(_chain(2), SETTINGS)
    lines = report.chain_table([entry])
    assert max(map(len, lines)) <= report.WIDTH
    assert "   20.00" in lines[-1]
    assert lines[-1].endswith("!")
    before = {"entries": [], "chain": [{**vars(entry), "chain": {"median": 29.0}}]}
    assert report.changes([], [entry], before) == [
        "1 of 1 times changed by more than 3%",
        "chain any moe 16/3 64x32+32 2: 29.00 -> 30.00 us",
    ]
    before["chain"] = [{**vars(entry), "chain": {"median": 29.5}}]
    assert report.changes([], [entry], before) == ["0 of 1 times changed by more than 3%"]
    assert report.changes([], [], before)[1:] == ["chain any moe 16/3 64x32+32 2: only in one"]
