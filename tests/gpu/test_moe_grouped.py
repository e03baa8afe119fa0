"""gb10::moe_grouped on a GPU against float64, and against moe_decode."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gb10.kernels.moe_decode import moe_decode  # noqa: E402
from gb10.kernels.moe_grouped import moe_grouped, workspace_bytes  # noqa: E402
from gpu.test_moe_decode import BF16, F16, Layer, routing  # noqa: E402

LIMIT = {BF16: 6e-3, F16: 1.5e-3}
"""act and each expert's part are rounded to the dtype."""


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("swizzled", [False, True], ids=["linear", "swizzled"])
@pytest.mark.parametrize(
    ("experts", "hidden", "inner", "topk", "shared"),
    [(64, 2048, 512, 10, 512), (32, 2048, 512, 8, 512), (32, 2048, 768, 8, 0), (16, 256, 64, 4, 128)],
    ids=["qwen3-next", "qwen3.5-moe", "qwen3-moe", "testbed"],
)
@pytest.mark.parametrize("m", [1, 2, 5, 16, 17, 40, 300])
def test_the_models_layers(
    m: int,
    experts: int,
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
        make_weight, device, experts=experts, hidden=hidden, inner=inner, shared=shared, swizzled=swizzled
    )
    x = (torch.randn(m, hidden, device=device) * 0.1).to(dtype)
    ids, weights = routing(m, topk, experts, device, masked=m > 1)
    multiplier = torch.rand(m, device=device) * 0.5 if shared else None
    out = poisoned(m, hidden, dtype=dtype)
    workspace = poisoned(workspace_bytes(m, topk, experts, hidden, inner, shared), dtype=torch.uint8)
    moe_grouped(
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


@pytest.mark.parametrize("m", [128, 2048, 8192])
def test_many_tokens_are_as_few_at_a_time(m: int, device: Any, make_weight: Any, relative_l2: Any) -> None:
    """512 experts, as Qwen3-Next has them; the reference is moe_decode, which has its own test."""
    layer = Layer(make_weight, device, experts=512, hidden=2048, inner=512, shared=512)
    layer.up_exact = layer.down_exact = None  # 17 GB that nobody reads
    x = (torch.randn(m, 2048, device=device) * 0.1).to(BF16)
    ids, weights = routing(m, 10, 512, device)
    multiplier = torch.rand(m, device=device)
    out = moe_grouped(x, *layer.arguments(), ids, weights, shared=layer.shared_expert(multiplier))
    wanted = torch.empty_like(x)
    for first in range(0, m, 16):
        some = slice(first, first + 16)
        moe_decode(
            x[some],
            *layer.arguments(),
            ids[some],
            weights[some],
            shared=layer.shared_expert(multiplier[some]),
            out=wanted[some],
        )
    assert relative_l2(out, wanted) < LIMIT[BF16]


def test_all_tokens_to_one_expert(device: Any, make_weight: Any, near: Any) -> None:
    layer = Layer(make_weight, device, experts=3, hidden=320, inner=192)
    x = torch.randn(201, 320, device=device).to(BF16)
    ids = torch.full((201, 2), 1, dtype=torch.int32, device=device)
    weights = torch.rand(201, 2, device=device)
    out = moe_grouped(x, *layer.arguments(), ids, weights)
    assert near(out, layer.expected(x, ids, weights), LIMIT[out.dtype])


@pytest.mark.parametrize("inner", [192, 512])
def test_experts_with_one_token_to_four_tiles(
    inner: int, device: Any, make_weight: Any, poisoned: Any, near: Any
) -> None:
    """Each width of a tile of 9.0's warpgroups, full and one token beyond; rows that end within an item."""
    counts = [0, 1, 15, 16, 17, 48, 49, 97, 113, 144, 145, 160, 161, 176, 177, 353, 529]
    layer = Layer(make_weight, device, experts=len(counts), hidden=320, inner=inner, shared=64)
    ids = torch.arange(len(counts), device=device).repeat_interleave(torch.tensor(counts, device=device))
    m = ids.numel()
    ids = ids[torch.randperm(m, device=device)].int()[:, None].contiguous()
    x = torch.randn(m, 320, device=device).to(BF16)
    weights = torch.rand(m, 1, device=device)
    out = poisoned(m, 320)
    moe_grouped(x, *layer.arguments(), ids, weights, shared=layer.shared_expert(), out=out)
    assert near(out, layer.expected(x, ids, weights), LIMIT[BF16])


def test_ids_that_name_no_expert_contribute_nothing(device: Any, make_weight: Any, poisoned: Any) -> None:
    layer = Layer(make_weight, device, experts=4, hidden=256, inner=128)
    x = torch.randn(20, 256, device=device).to(BF16)
    for ids in (
        torch.full((20, 2), -1, dtype=torch.int32, device=device),
        torch.full((20, 2), 2**40 + 1, dtype=torch.int64, device=device),
    ):
        out = poisoned(20, 256)
        moe_grouped(x, *layer.arguments(), ids, torch.ones(20, 2, device=device), out=out)
        assert bool((out == 0).all())


def test_an_expert_map(device: Any, make_weight: Any, near: Any) -> None:
    """The second half of 16 experts lives here; int64 ids."""
    layer = Layer(make_weight, device, experts=8, hidden=512, inner=192)
    x = torch.randn(50, 512, device=device).to(BF16)
    ids, weights = routing(50, 6, 16, device)
    mapped = torch.full((16,), -1, dtype=torch.int32, device=device)
    mapped[8:] = torch.arange(8, dtype=torch.int32, device=device).roll(3)
    out = moe_grouped(x, *layer.arguments(), ids.long(), weights, expert_map=mapped)
    assert near(out, layer.expected(x, mapped[ids.long()], weights), LIMIT[out.dtype])


def test_two_runs_give_the_same_bits(device: Any, make_weight: Any, poisoned: Any) -> None:
    layer = Layer(make_weight, device, experts=64, hidden=2048, inner=512, shared=512)
    x = torch.randn(500, 2048, device=device).to(BF16)
    ids, weights = routing(500, 10, 64, device)
    runs = []
    for _ in range(5):
        out = poisoned(500, 2048)
        moe_grouped(x, *layer.arguments(), ids, weights, shared=layer.shared_expert(), out=out)
        runs.append(out.view(torch.int16))
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_a_graph_sees_new_ids(device: Any, make_weight: Any, near: Any) -> None:
    layer = Layer(make_weight, device, experts=32, hidden=1024, inner=256, shared=256)
    x = torch.zeros(40, 1024, dtype=BF16, device=device)
    out = torch.empty_like(x)
    ids, weights = routing(40, 6, 32, device)
    workspace = torch.empty(workspace_bytes(40, 6, 32, 1024, 256, 256), dtype=torch.uint8, device=device)

    def run() -> None:
        moe_grouped(
            x,
            *layer.arguments(),
            ids,
            weights,
            shared=layer.shared_expert(),
            workspace=workspace,
            out=out,
        )

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for _ in range(3):
        x.copy_((torch.randn(40, 1024, device=device) * 0.05).to(BF16))
        new_ids, new_weights = routing(40, 6, 32, device, masked=True)
        ids.copy_(new_ids)
        weights.copy_(new_weights)
        graph.replay()
        assert near(out, layer.expected(x, ids, weights), LIMIT[out.dtype])


def test_opcheck(device: Any, make_weight: Any, check_operator: Any) -> None:
    layer = Layer(make_weight, device, experts=4, hidden=128, inner=64)
    x = torch.randn(20, 128, device=device).to(BF16)
    ids, weights = routing(20, 2, 4, device)
    workspace = torch.zeros(workspace_bytes(20, 2, 4, 128, 64, 0), dtype=torch.uint8, device=device)
    numbers = ("silu", float("inf"), 1.0, 0.0, False, False, False)
    arguments = (x, *layer.arguments(), ids, weights, *(None,) * 8, *numbers, workspace, torch.zeros_like(x))
    check_operator(torch.ops.gb10.moe_grouped.default, arguments)
