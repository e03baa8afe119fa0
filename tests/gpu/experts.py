"""Random NVFP4 experts and what they compute in float64; the tests that moe_decode and moe_grouped share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")

from gb10.kernels.moe_decode import SharedExpert  # noqa: E402

BF16, F16 = torch.bfloat16, torch.float16
SCALES = (0x20, 0x48)


class Layer:
    """Random experts, perhaps a shared one, and what they compute in float64 (silu, gate rows first)."""

    def __init__(
        self,
        make_weight: Any,
        device: Any,
        *,
        experts: int,
        hidden: int,
        inner: int,
        shared: int = 0,
        swizzled: bool = False,
    ) -> None:
        def stack(*shape: int) -> Any:
            return make_weight(*shape, swizzled=swizzled, scale_bytes=SCALES)

        self.up, self.down = stack(experts, 2 * inner, hidden), stack(experts, hidden, inner)
        self.swizzled = swizzled
        spread = torch.rand(experts, device=device) + 0.5
        self.globals = (spread / hidden**0.5, spread.flip(0).contiguous() / inner**0.5)
        self.up_exact = self.up.exact / self.up.global_scale.double()
        self.down_exact = self.down.exact / self.down.global_scale.double()
        self.shared = None
        if shared:
            self.shared = (stack(2 * shared, hidden), stack(hidden, shared))
        torch.cuda.synchronize()

    def arguments(self) -> tuple[Any, Any, Any, Any, Any, Any]:
        first, second = self.globals
        return (self.up.packed, self.up.scales, first, self.down.packed, self.down.scales, second)

    def shared_expert(self, multiplier: Any = None) -> SharedExpert | None:
        if self.shared is None:
            return None
        up, down = self.shared
        return SharedExpert(
            up.packed, up.scales, up.global_scale, down.packed, down.scales, down.global_scale, multiplier
        )

    @staticmethod
    def _expert(x: Any, up: Any, down: Any) -> Any:
        gate, value = (x @ up.T).chunk(2)
        return (torch.nn.functional.silu(gate) * value) @ down.T

    def expected(self, x: Any, ids: Any, weights: Any, multiplier: Any = None) -> Any:
        first, second = (g.double() for g in self.globals)
        y = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        for m, row in enumerate(x.double()):
            for e, weight in zip(ids[m].tolist(), weights[m].double(), strict=True):
                if 0 <= e < len(first):
                    up, down = self.up_exact[e] * first[e], self.down_exact[e] * second[e]
                    y[m] += weight * self._expert(row, up, down)
            if self.shared is not None:
                part = self._expert(row, self.shared[0].exact, self.shared[1].exact)
                y[m] += part * (1.0 if multiplier is None else multiplier[m].double())
        return y


def routing(m: int, topk: int, experts: int, device: Any, *, masked: bool = False) -> tuple[Any, Any]:
    ids = torch.rand(m, experts, device=device).argsort(dim=1)[:, :topk].int()
    if masked:
        ids[torch.rand(m, topk, device=device) < 0.2] = -1
    return ids.contiguous(), torch.rand(m, topk, device=device).softmax(dim=1)


class Operator(NamedTuple):
    """An operator under test. ``tokens``: a number that it is for."""

    call: Callable[..., Any]
    overload: str
    workspace_bytes: Callable[..., int]
    """Of m, topk, experts, hidden, inner, shared."""
    limits: Mapping[Any, float]
    """By dtype, the relative error."""
    tokens: int


class Experts:
    """The tests of an operator over experts; a file's class for it has ``operator``."""

    operator: Operator

    def layer_is_right(
        self,
        layer: Layer,
        m: int,
        dtype: Any,
        *,
        topk: int,
        multiplier: Any,
        device: Any,
        poisoned: Any,
        near: Any,
    ) -> None:
        """Poisoned output and workspace, and some of the ids name no expert."""
        experts, hidden = layer.up.packed.shape[0], layer.down.packed.shape[1]
        inner = layer.up.packed.shape[1] // 2
        shared = 0 if layer.shared is None else layer.shared[0].packed.shape[0] // 2
        x = (torch.randn(m, hidden, device=device) * 0.1).to(dtype)
        ids, weights = routing(m, topk, experts, device, masked=m > 1)
        out = poisoned(m, hidden, dtype=dtype)
        size = self.operator.workspace_bytes(m, topk, experts, hidden, inner, shared)
        self.operator.call(
            x,
            *layer.arguments(),
            ids,
            weights,
            shared=layer.shared_expert(multiplier),
            swizzled=layer.swizzled,
            workspace=poisoned(size, dtype=torch.uint8),
            out=out,
        )
        assert near(out, layer.expected(x, ids, weights, multiplier), self.operator.limits[dtype])

    def test_ids_that_name_no_expert_contribute_nothing(
        self, device: Any, make_weight: Any, poisoned: Any
    ) -> None:
        m = self.operator.tokens
        layer = Layer(make_weight, device, experts=4, hidden=256, inner=128)
        x = torch.randn(m, 256, device=device).to(BF16)
        for number, dtype in ((-1, torch.int32), (4, torch.int32), (2**40 + 1, torch.int64)):
            ids = torch.full((m, 2), number, dtype=dtype, device=device)
            out = poisoned(m, 256)
            self.operator.call(x, *layer.arguments(), ids, torch.ones(m, 2, device=device), out=out)
            assert bool((out == 0).all())

    def test_an_expert_map(self, device: Any, make_weight: Any, near: Any) -> None:
        """The second half of 16 experts lives here; int64 ids."""
        m = self.operator.tokens
        layer = Layer(make_weight, device, experts=8, hidden=512, inner=192)
        x = torch.randn(m, 512, device=device).to(BF16)
        ids, weights = routing(m, 6, 16, device)
        mapped = torch.full((16,), -1, dtype=torch.int32, device=device)
        mapped[8:] = torch.arange(8, dtype=torch.int32, device=device).roll(3)
        out = self.operator.call(x, *layer.arguments(), ids.long(), weights, expert_map=mapped)
        assert near(out, layer.expected(x, mapped[ids.long()], weights), self.operator.limits[BF16])

    def test_two_runs_give_the_same_bits(self, device: Any, make_weight: Any, poisoned: Any) -> None:
        m = self.operator.tokens
        layer = Layer(make_weight, device, experts=64, hidden=2048, inner=512, shared=512)
        x = torch.randn(m, 2048, device=device).to(BF16)
        ids, weights = routing(m, 10, 64, device)
        runs = []
        for _ in range(5):
            out = poisoned(m, 2048)
            self.operator.call(x, *layer.arguments(), ids, weights, shared=layer.shared_expert(), out=out)
            runs.append(out.view(torch.int16))
        assert all(torch.equal(run, runs[0]) for run in runs)

    def test_a_graph_sees_new_ids(self, device: Any, make_weight: Any, near: Any) -> None:
        """Ids, weights and x change between replays; two layers follow each other in the graph."""
        m, limit = min(self.operator.tokens, 40), self.operator.limits[BF16]
        layer = Layer(make_weight, device, experts=32, hidden=1024, inner=256, shared=256)
        x = torch.zeros(m, 1024, dtype=BF16, device=device)
        middle, out = torch.empty_like(x), torch.empty_like(x)
        ids, weights = routing(m, 6, 32, device)
        size = self.operator.workspace_bytes(m, 6, 32, 1024, 256, 256)
        workspace = torch.empty(size, dtype=torch.uint8, device=device)

        def run() -> None:
            for source, target in ((x, middle), (middle, out)):
                self.operator.call(
                    source,
                    *layer.arguments(),
                    ids,
                    weights,
                    shared=layer.shared_expert(),
                    workspace=workspace,
                    out=target,
                )

        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        for _ in range(3):
            x.copy_((torch.randn(m, 1024, device=device) * 0.05).to(BF16))
            new_ids, new_weights = routing(m, 6, 32, device, masked=True)
            ids.copy_(new_ids)
            weights.copy_(new_weights)
            graph.replay()
            assert near(middle, layer.expected(x, ids, weights), limit)
            assert near(out, layer.expected(middle, ids, weights), limit)

    def test_opcheck(self, device: Any, make_weight: Any, check_operator: Any) -> None:
        m = min(self.operator.tokens, 20)
        layer = Layer(make_weight, device, experts=4, hidden=128, inner=64)
        x = torch.randn(m, 128, device=device).to(BF16)
        ids, weights = routing(m, 2, 4, device)
        size = self.operator.workspace_bytes(m, 2, 4, 128, 64, 0)
        workspace = torch.zeros(size, dtype=torch.uint8, device=device)
        numbers = ("silu", float("inf"), 1.0, 0.0, False, False, False)
        given = (x, *layer.arguments(), ids, weights, *(None,) * 8, *numbers, workspace, torch.zeros_like(x))
        check_operator(getattr(torch.ops.gb10, self.operator.overload).default, given)
