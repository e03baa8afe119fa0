"""gb10::moe_decode on a GPU against float64."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gb10.kernels.moe_decode import SharedExpert, moe_decode, workspace_bytes  # noqa: E402

BF16, F16 = torch.bfloat16, torch.float16
LIMIT = {BF16: 2e-3, F16: 1e-3}
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


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("swizzled", [False, True], ids=["linear", "swizzled"])
@pytest.mark.parametrize(
    ("hidden", "inner", "topk", "shared"),
    [(2048, 512, 10, 512), (2048, 640, 10, 640), (2048, 512, 8, 512), (320, 192, 4, 64)],
    ids=["qwen3-next", "qwen3.8-flash-next", "qwen3.6-35b-a3b", "small"],
)
@pytest.mark.parametrize("m", [1, 2, 4, 7, 16])
def test_the_models_layers(
    m: int,
    hidden: int,
    inner: int,
    topk: int,
    shared: int,
    swizzled: bool,
    dtype: Any,
    device: Any,
    make_weight: Any,
    poisoned: Any,
    near: Any,
) -> None:
    layer = Layer(
        make_weight, device, experts=24, hidden=hidden, inner=inner, shared=shared, swizzled=swizzled
    )
    x = (torch.randn(m, hidden, device=device) * 0.1).to(dtype)
    ids, weights = routing(m, topk, 24, device, masked=m > 1)
    multiplier = torch.rand(m, 1, device=device).to(dtype) * 0.01
    out = poisoned(m, hidden, dtype=dtype)
    workspace = poisoned(workspace_bytes(m, topk, inner, shared), dtype=torch.uint8)
    moe_decode(
        x,
        *layer.arguments(),
        ids,
        weights,
        shared=layer.shared_expert(multiplier),
        swizzled=swizzled,
        workspace=workspace,
        out=out,
    )
    assert near(out, layer.expected(x, ids, weights, multiplier), LIMIT[out.dtype])


def test_ids_that_name_no_expert_contribute_nothing(device: Any, make_weight: Any, poisoned: Any) -> None:
    layer = Layer(make_weight, device, experts=4, hidden=256, inner=128)
    x = torch.randn(3, 256, device=device).to(BF16)
    for ids in (
        torch.full((3, 2), -1, dtype=torch.int32, device=device),
        torch.full((3, 2), 4, dtype=torch.int32, device=device),
        torch.full((3, 2), 2**40 + 1, dtype=torch.int64, device=device),
    ):
        out = poisoned(3, 256)
        moe_decode(x, *layer.arguments(), ids, torch.ones(3, 2, device=device), out=out)
        assert bool((out == 0).all())


def test_an_expert_map(device: Any, make_weight: Any, near: Any) -> None:
    """The second half of 16 experts lives here; int64 ids."""
    layer = Layer(make_weight, device, experts=8, hidden=512, inner=192)
    x = torch.randn(5, 512, device=device).to(BF16)
    ids, weights = routing(5, 6, 16, device)
    mapped = torch.full((16,), -1, dtype=torch.int32, device=device)
    mapped[8:] = torch.arange(8, dtype=torch.int32, device=device).roll(3)
    local = mapped[ids.long()]
    out = moe_decode(x, *layer.arguments(), ids.long(), weights, expert_map=mapped)
    assert near(out, layer.expected(x, local, weights), LIMIT[out.dtype])


def test_a_repeated_id_has_both_weights(device: Any, make_weight: Any, near: Any) -> None:
    layer = Layer(make_weight, device, experts=4, hidden=256, inner=128)
    x = torch.randn(16, 256, device=device).to(BF16)
    ids = torch.tensor([[2, 1, 2, 2]], dtype=torch.int32, device=device).repeat(16, 1)
    weights = torch.rand(16, 4, device=device)
    out = moe_decode(x, *layer.arguments(), ids, weights)
    assert near(out, layer.expected(x, ids, weights), LIMIT[out.dtype])


def test_the_weight_on_the_input(device: Any, make_weight: Any, near: Any) -> None:
    layer = Layer(make_weight, device, experts=6, hidden=256, inner=128)
    x = torch.randn(4, 256, device=device).to(BF16)
    ids, weights = routing(4, 1, 6, device)
    out = moe_decode(x, *layer.arguments(), ids, weights, router_weight_on_input=True)
    scaled = x.double() * weights.double()
    assert near(out, layer.expected(scaled, ids, torch.ones_like(weights)), LIMIT[out.dtype])


def test_two_runs_give_the_same_bits(device: Any, make_weight: Any, poisoned: Any) -> None:
    layer = Layer(make_weight, device, experts=64, hidden=2048, inner=512, shared=512)
    x = torch.randn(16, 2048, device=device).to(BF16)
    ids, weights = routing(16, 10, 64, device)
    runs = []
    for _ in range(5):
        out = poisoned(16, 2048)
        moe_decode(x, *layer.arguments(), ids, weights, shared=layer.shared_expert(), out=out)
        runs.append(out.view(torch.int16))
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_a_graph_sees_new_ids(device: Any, make_weight: Any, near: Any) -> None:
    """Ids, weights and x change between replays; two layers follow each other in the graph."""
    layer = Layer(make_weight, device, experts=32, hidden=1024, inner=256, shared=256)
    x = torch.zeros(4, 1024, dtype=BF16, device=device)
    middle, out = torch.empty_like(x), torch.empty_like(x)
    ids, weights = routing(4, 6, 32, device)
    workspace = torch.empty(workspace_bytes(4, 6, 256, 256), dtype=torch.uint8, device=device)

    def run() -> None:
        for source, target in ((x, middle), (middle, out)):
            moe_decode(
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
    for _ in range(10):
        x.copy_((torch.randn(4, 1024, device=device) * 0.05).to(BF16))
        new_ids, new_weights = routing(4, 6, 32, device, masked=True)
        ids.copy_(new_ids)
        weights.copy_(new_weights)
        graph.replay()
        assert near(middle, layer.expected(x, ids, weights), LIMIT[middle.dtype])
        assert near(out, layer.expected(middle, ids, weights), LIMIT[out.dtype])


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_infinite_token_is_alone(bad: float, device: Any, make_weight: Any, near: Any) -> None:
    layer = Layer(make_weight, device, experts=4, hidden=512, inner=256, shared=64)
    x = torch.randn(5, 512, device=device).to(BF16)
    x[2, 7] = bad
    ids, weights = routing(5, 3, 4, device)
    out = moe_decode(x, *layer.arguments(), ids, weights, shared=layer.shared_expert())
    others = [0, 1, 3, 4]
    assert not bool(out[2].isfinite().any())
    exact = layer.expected(x[others], ids[others], weights[others])
    assert near(out[others], exact, LIMIT[out.dtype])


def test_opcheck(device: Any, make_weight: Any, check_operator: Any) -> None:
    layer = Layer(make_weight, device, experts=4, hidden=128, inner=64)
    x = torch.randn(2, 128, device=device).to(BF16)
    ids, weights = routing(2, 2, 4, device)
    workspace = torch.zeros(workspace_bytes(2, 2, 64, 0), dtype=torch.uint8, device=device)
    numbers = ("silu", float("inf"), 1.0, 0.0, False, False, False)
    arguments = (x, *layer.arguments(), ids, weights, *(None,) * 8, *numbers, workspace, torch.zeros_like(x))
    check_operator(torch.ops.gb10.moe_decode.default, arguments)
