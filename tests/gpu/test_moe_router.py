"""gb10::route_experts on a GPU against float64."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gb10.kernels.moe_router import Norm, Routed, route_experts, workspace_bytes  # noqa: E402

BF16, F16 = torch.bfloat16, torch.float16
HALF_STEP = {BF16: 2.0**-8, F16: 2.0**-11}
"""Largest relative error of rounding."""
SHAPES = {
    # hidden, experts, topk, shared gate, residual and norm, weight plus one
    "qwen3-next": (2048, 512, 10, True, True),
    "qwen3.6-35b-a3b": (2048, 256, 8, True, True),
    "qwen3-moe": (2048, 128, 8, False, False),
    "testbed": (256, 16, 4, True, True),
    "odd": (2304, 330, 7, True, False),
    "wide": (8192, 1024, 32, True, True),
}
TOKENS = (1, 2, 3, 4, 5, 8, 11, 16)


class Router:
    """Random weights of a router, and what they compute in float64."""

    def __init__(self, name: str, dtype: Any, device: Any) -> None:
        self.hidden, self.experts, self.topk, shared, self.plus_one = SHAPES[name]
        rows = torch.randn(self.experts + 1, self.hidden, device=device) / self.hidden**0.5
        self.gate = rows[:-1].to(dtype)
        self.shared = rows[-1:].to(dtype) if shared else None
        self.weight = (torch.randn(self.hidden, device=device) * 0.1 + (not self.plus_one)).to(dtype)
        torch.cuda.synchronize()

    def norm(self, residual: Any) -> Norm:
        return Norm(self.weight, 1e-6, self.plus_one, residual)

    def normed(self, total: Any) -> Any:
        scale = (total.square().mean(dim=1, keepdim=True) + 1e-6).rsqrt()
        return total * scale * (self.weight.double() + self.plus_one)


def near(out: Any, wanted: Any) -> bool:
    """Whether every number is rounded to nearest, but for what FP32 loses."""
    return bool(((out.double() - wanted).abs() <= wanted.abs() * (HALF_STEP[out.dtype] + 2e-6) + 1e-7).all())


def check(router: Router, routed: Routed, renormalise: bool) -> None:
    """Ids, weights and multiplier, from the normed tokens that the call gave."""
    x = routed.normed.double()
    half_step = HALF_STEP[routed.normed.dtype]
    exact = x @ router.gate.double().T
    logits = exact.to(routed.normed.dtype).double()
    ids = routed.ids.long()
    assert int(ids.min()) >= 0 and int(ids.max()) < router.experts
    assert bool((ids.sort(dim=1).values.diff(dim=1) > 0).all()), "an expert is there twice"
    best = logits.sort(dim=1, descending=True, stable=True)
    one_off = 4 * half_step * (best.values[:, : router.topk].abs() + 1e-3)
    assert bool(((logits.gather(1, ids) - best.values[:, : router.topk]).abs() <= one_off).all())
    # A logit next to the middle of two numbers may be rounded to the other one: only few are.
    assert int((ids != best.indices[:, : router.topk]).sum()) <= 2
    shares = logits.softmax(dim=1).gather(1, ids)
    if renormalise:
        shares /= shares.sum(dim=1, keepdim=True)
    apart = (routed.weights.double() - shares).abs()
    assert bool((apart <= shares * (4 * one_off + 1e-5)).all())
    assert int((apart > 1e-5 * shares).any(dim=1).sum()) <= 1
    if router.shared is not None:
        assert routed.shared_multiplier is not None
        multiplier = (x @ router.shared.double()[0]).sigmoid()
        assert torch.allclose(routed.shared_multiplier.double(), multiplier, rtol=1e-5, atol=0)


def call(router: Router, x: Any, residual: Any, workspace: Any, poisoned: Any, renormalise: bool) -> Routed:
    """The operator over poisoned outputs."""
    m = x.shape[0]
    ids = poisoned(m, router.topk, dtype=torch.int32)
    weights = poisoned(m, router.topk, dtype=torch.float32)
    multiplier = None if router.shared is None else poisoned(m, dtype=torch.float32)
    normed, total = poisoned(*x.shape, dtype=x.dtype), poisoned(*x.shape, dtype=x.dtype)
    torch.ops.gb10.route_experts(
        x,
        residual,
        router.weight,
        1e-6,
        router.plus_one,
        router.gate,
        router.shared,
        renormalise,
        workspace,
        ids,
        weights,
        multiplier,
        normed,
        total,
    )
    return Routed(ids, weights, multiplier, normed, total)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("m", TOKENS)
def test_the_models_routers(m: int, name: str, dtype: Any, device: Any, poisoned: Any) -> None:
    router = Router(name, dtype, device)
    workspace = torch.zeros(workspace_bytes(m, router.experts), dtype=torch.uint8, device=device)
    for renormalise in (True, False):
        x = torch.randn(m, router.hidden, device=device).to(dtype)
        residual = torch.randn(m, router.hidden, device=device).to(dtype)
        routed = call(router, x, residual, workspace, poisoned, renormalise)
        total = x.double() + residual.double()
        assert torch.equal(routed.residual, (x.float() + residual.float()).to(dtype))
        wanted = router.normed(total)
        assert near(routed.normed, wanted)
        check(router, routed, renormalise)
        assert not bool(workspace.any())


@pytest.mark.parametrize("m", [1, 4, 16])
def test_exact_sums_and_ties(m: int, device: Any) -> None:
    """Small integers: every logit is exact, many are equal, and the lower expert goes first."""
    x = torch.randint(-2, 3, (m, 2048), device=device).to(BF16)
    gate = (torch.randint(-2, 3, (512, 2048), device=device) / 16).to(BF16)
    gate[100:140] = gate[100]
    routed = route_experts(x, gate, 10, renormalise=True)
    logits = (x.double() @ gate.double().T).to(BF16).double()
    best = logits.sort(dim=1, descending=True, stable=True)
    assert torch.equal(routed.ids.long(), best.indices[:, :10])
    shares = best.values[:, :10].softmax(dim=1)
    assert torch.allclose(routed.weights.double(), shares, rtol=3e-6, atol=0)
    assert routed.normed is x
    alike = route_experts(x, gate[:1].repeat(300, 1), 32, renormalise=False)
    assert torch.equal(alike.ids, torch.arange(32, dtype=torch.int32, device=device).expand(m, 32))
    assert torch.allclose(alike.weights, torch.full_like(alike.weights, 1 / 300), rtol=1e-6, atol=0)


def test_without_a_residual(device: Any) -> None:
    router = Router("qwen3-next", BF16, device)
    x = torch.randn(3, 2048, device=device).to(BF16)
    routed = route_experts(
        x, router.gate, 10, renormalise=True, norm=router.norm(None), shared_gate_weight=router.shared
    )
    assert torch.equal(routed.residual, x)
    wanted = router.normed(x.double())
    assert near(routed.normed, wanted)
    check(router, routed, True)


@pytest.mark.parametrize("m", TOKENS)
def test_two_runs_give_the_same_bits(m: int, device: Any, poisoned: Any) -> None:
    router = Router("qwen3-next", BF16, device)
    x = torch.randn(m, 2048, device=device).to(BF16)
    residual = torch.randn(m, 2048, device=device).to(BF16)
    workspace = torch.zeros(workspace_bytes(m, 512), dtype=torch.uint8, device=device)
    first = call(router, x, residual, workspace, poisoned, True)
    for _ in range(50):
        again = call(router, x, residual, workspace, poisoned, True)
        pairs = zip(first, again, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs if a is not None and b is not None)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_bad_token_is_alone(bad: float, device: Any, poisoned: Any) -> None:
    router = Router("qwen3-next", BF16, device)
    x = torch.randn(5, 2048, device=device).to(BF16)
    residual = torch.randn(5, 2048, device=device).to(BF16)
    workspace = torch.zeros(workspace_bytes(5, 512), dtype=torch.uint8, device=device)
    good = call(router, x, residual, workspace, poisoned, True)
    x[2, 7] = bad
    routed = call(router, x, residual, workspace, poisoned, True)
    assert routed.shared_multiplier is not None and bool(routed.shared_multiplier[2].isnan())
    assert bool(routed.weights[2].isnan().all())
    assert bool(((routed.ids >= 0) & (routed.ids < 512)).all())
    others = [0, 1, 3, 4]
    pairs = zip(good, routed, strict=True)
    assert all(torch.equal(a[others], b[others]) for a, b in pairs if a is not None and b is not None)


@pytest.mark.parametrize("m", [1, 4, 16])
def test_a_graph_of_layers_sees_new_tokens(m: int, device: Any, poisoned: Any) -> None:
    """Two routers with one workspace follow each other in a graph; every replay has other tokens."""
    first, second = Router("qwen3-next", BF16, device), Router("qwen3-next", BF16, device)
    x = torch.zeros(m, 2048, dtype=BF16, device=device)
    residual = torch.zeros(m, 2048, dtype=BF16, device=device)
    workspace = torch.zeros(workspace_bytes(m, 512), dtype=torch.uint8, device=device)
    outputs: list[Routed] = []

    def run() -> None:
        outputs.clear()
        outputs.append(call(first, x, residual, workspace, poisoned, True))
        outputs.append(call(second, outputs[0].normed, outputs[0].residual, workspace, poisoned, True))

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for _ in range(10):
        x.copy_(torch.randn(m, 2048, device=device))
        residual.copy_(torch.randn(m, 2048, device=device))
        graph.replay()
        wanted = first.normed(x.double() + residual.double())
        assert near(outputs[0].normed, wanted)
        check(first, outputs[0], True)
        check(second, outputs[1], True)
        assert not bool(workspace.any())


def test_opcheck(device: Any, check_operator: Any) -> None:
    router = Router("testbed", BF16, device)
    x = torch.randn(2, 256, device=device).to(BF16)
    residual = torch.randn(2, 256, device=device).to(BF16)
    outputs = (
        torch.full((2, 4), 99, dtype=torch.int32, device=device),
        torch.zeros(2, 4, device=device),
        torch.zeros(2, device=device),
        torch.zeros_like(x),
        torch.zeros_like(x),
    )
    workspace = torch.zeros(workspace_bytes(2, 16), dtype=torch.uint8, device=device)
    call_arguments = (x, residual, router.weight, 1e-6, True, router.gate, router.shared, True, workspace)
    operator = torch.ops.gb10.route_experts.default
    check_operator(operator, (*call_arguments, *outputs), restored={"workspace"})
