"""gb10::sparse24_gemv and sparse24_moe on a GPU against float64, from weights that gb10.sparse24 packed."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")

from gb10.errors import UserError  # noqa: E402
from gb10.kernels.library import SPARSE24, load  # noqa: E402
from gb10.kernels.sparse24 import sparse24_gemv, sparse24_moe  # noqa: E402
from gb10.nvfp4 import NvFp4Tensor, dequantize  # noqa: E402
from gb10.sparse24 import Sparse24Weight, pack, unpack  # noqa: E402

BF16, F16 = torch.bfloat16, torch.float16
LIMIT = {BF16: 2e-3, F16: 5e-4}

MODEL_SHAPES = [(12288, 2048), (1024, 2048), (2048, 4096), (2048, 512)]
ODD_SHAPES = [(1, 16), (15, 208), (17, 256), (129, 960), (33, 2880), (40, 16384)]


@pytest.fixture(autouse=True, scope="module")
def operators() -> None:
    try:
        load(SPARSE24)
    except UserError as error:
        pytest.skip(str(error))


class Case(NamedTuple):
    weight: Sparse24Weight
    exact: Any
    """float64 ``[N, K]``: what was kept."""


def make(make_weight: Any, n: int, k: int, scale_bytes: tuple[int, int] = (0, 0x7E)) -> Case:
    dense = make_weight(n, k, scale_bytes=scale_bytes)
    native = NvFp4Tensor(dense.packed, dense.scales, dense.global_scale)
    packed, _ = pack(native, allow_loss=True)
    kept = unpack(packed)
    exact = dequantize(kept.packed, kept.block_scales, 1.0).double() * dense.global_scale.double()
    # Nothing but zeros differs from the dense weight, and nothing is left of a third or fourth of a group.
    assert bool(((exact == dense.exact) | (exact == 0)).all())
    assert int((exact.reshape(n, -1, 4) != 0).sum(-1).max()) <= 2
    torch.cuda.synchronize()
    return Case(packed, exact)


def tokens_of(m: int, k: int, dtype: Any, device: Any) -> Any:
    return (torch.randn(m, k, device=device) * (0.01 if dtype == F16 else 1.0)).to(dtype)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize(("n", "k"), MODEL_SHAPES)
@pytest.mark.parametrize("m", [1, 4, 16])
def test_the_models_shapes(
    m: int, n: int, k: int, dtype: Any, device: Any, make_weight: Any, poisoned: Any, relative_l2: Any
) -> None:
    case, x = make(make_weight, n, k), tokens_of(m, k, dtype, device)
    out = poisoned(m, n, dtype=dtype)
    sparse24_gemv(x, case.weight, out=out)
    assert relative_l2(out, x.double() @ case.exact.T) <= LIMIT[dtype]


@pytest.mark.parametrize(("n", "k"), ODD_SHAPES)
@pytest.mark.parametrize("m", range(1, 17))
def test_odd_shapes_with_a_bias(m: int, n: int, k: int, device: Any, make_weight: Any, poisoned: Any) -> None:
    case, x = make(make_weight, n, k), tokens_of(m, k, BF16, device)
    bias = (torch.randn(n, device=device) * 30).to(BF16)
    torch.cuda.synchronize()  # the kernel reads a bias early, too
    out = poisoned(m, n)
    sparse24_gemv(x, case.weight, bias, out=out)
    reference = x.double() @ case.exact.T + bias.double()
    magnitude = x.double().abs() @ case.exact.abs().T + bias.double().abs()
    # Element by element: half a step of bf16, and what FP32 sums lose against the sum of magnitudes.
    assert bool(((out.double() - reference).abs() <= reference.abs() * 2**-8 + magnitude * 1e-5).all())


def test_a_weight_of_many_tiles(device: Any, make_weight: Any, poisoned: Any, relative_l2: Any) -> None:
    case, x = make(make_weight, 60000, 1024), tokens_of(3, 1024, BF16, device)
    out = poisoned(3, 60000)
    sparse24_gemv(x, case.weight, out=out)
    assert relative_l2(out, x.double() @ case.exact.T) <= LIMIT[BF16]


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
def test_single_weights_are_exact(dtype: Any, device: Any, make_weight: Any, poisoned: Any) -> None:
    """One-hot activations: each position of a tile meets its own k, and nothing is rounded but the output."""
    case = make(make_weight, 32, 512)
    for first in range(0, 512, 16):
        x = torch.zeros(16, 512, dtype=dtype, device=device)
        x[torch.arange(16), first + torch.arange(16)] = 1.0
        out = poisoned(16, 32, dtype=dtype)
        sparse24_gemv(x, case.weight, out=out)
        want = case.exact[:, first : first + 16].T
        # One rounding in FP32 (global scale) and one in the output.
        step = 2.0 ** (-8 if dtype == BF16 else -11)
        smallest = 0.0 if dtype == BF16 else 2.0**-25
        assert bool(((out.double() - want).abs() <= want.abs() * step * 1.001 + smallest).all())


def test_packing_on_the_gpu_is_packing_on_the_cpu(device: Any, make_weight: Any) -> None:
    dense = make_weight(100, 336)
    native = NvFp4Tensor(dense.packed, dense.scales, dense.global_scale)
    here, loss_here = pack(native, allow_loss=True)
    there, loss_there = pack(NvFp4Tensor(*(part.cpu() for part in native)), allow_loss=True)
    for name in ("values", "positions", "scales"):
        a, b = getattr(here, name).cpu().view(torch.uint8), getattr(there, name).view(torch.uint8)
        assert torch.equal(a, b), name
    assert loss_here.groups_by_nonzeros == loss_there.groups_by_nonzeros
    assert loss_here.energy_dropped == pytest.approx(loss_there.energy_dropped, rel=1e-12)


@pytest.mark.parametrize("n", [40, 5000, 40000])
def test_two_runs_give_the_same_bits_and_write_nothing_else(
    n: int, device: Any, make_weight: Any, poisoned: Any
) -> None:
    case, x = make(make_weight, n, 1024), tokens_of(7, 1024, BF16, device)
    runs = []
    for _ in range(5):
        memory = poisoned(9, n)
        sparse24_gemv(x, case.weight, out=memory[1:8])
        raw = memory.view(torch.int16)
        assert bool((raw[0] == -1).all()) and bool((raw[8] == -1).all())
        runs.append(raw.clone())
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_a_graph_sees_new_inputs(device: Any, make_weight: Any, relative_l2: Any) -> None:
    first, second = make(make_weight, 2048, 1024), make(make_weight, 1024, 2048)
    x = torch.zeros(2, 1024, dtype=BF16, device=device)
    middle = torch.empty(2, 2048, dtype=BF16, device=device)

    def chain() -> None:
        sparse24_gemv(x, first.weight, out=middle)
        sparse24_gemv(middle, second.weight, out=x)

    chain()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain()
    for _ in range(20):
        start = (torch.randn(2, 1024, device=device) * 1e-3).to(BF16)
        x.copy_(start)
        graph.replay()
        assert relative_l2(middle, start.double() @ first.exact.T) <= LIMIT[BF16]
        assert relative_l2(x, middle.double() @ second.exact.T) <= LIMIT[BF16]


def test_opcheck(device: Any, make_weight: Any, check_operator: Any) -> None:
    w, x = make(make_weight, 48, 256).weight, tokens_of(2, 256, BF16, device)
    out = torch.zeros(2, 48, dtype=BF16, device=device)
    arguments = (x, w.values, w.positions, w.scales, w.global_scale, None, out)
    check_operator(torch.ops.gb10.sparse24_gemv.default, arguments)


class Experts(NamedTuple):
    weight: Sparse24Weight
    exact: Any
    """float64 ``[E, N, K]``: what was kept."""


def make_experts(make_weight: Any, count: int, n: int, k: int) -> Experts:
    dense = [make_weight(n, k, scale_bytes=(0x20, 0x50)) for _ in range(count)]
    scales = torch.stack([w.global_scale.reshape(()) for w in dense]) / k**0.5
    native = NvFp4Tensor(
        torch.stack([w.packed for w in dense]), torch.stack([w.scales for w in dense]), scales
    )
    packed, _ = pack(native, allow_loss=True)
    kept = unpack(packed)
    flat = dequantize(kept.packed.flatten(0, 1), kept.block_scales.flatten(0, 1), 1.0).double()
    torch.cuda.synchronize()
    return Experts(packed, flat.reshape(count, n, k) * scales.double().reshape(-1, 1, 1))


def moe_reference(x: Any, w13: Any, w2: Any, ids: Any, weights: Any, on_input: bool = False) -> Any:
    out = torch.zeros(x.shape[0], w2.shape[1], dtype=torch.float64, device=x.device)
    for token, slots in enumerate(ids.tolist()):
        for slot, expert in enumerate(slots):
            if not 0 <= expert < w13.shape[0]:
                continue
            weight = weights[token, slot].double()
            both = (w13[expert] @ x[token].double()) * (weight if on_input else 1.0)
            gate, up = both.chunk(2)
            part = w2[expert] @ (torch.nn.functional.silu(gate) * up)
            out[token] += part * (1.0 if on_input else weight)
    return out


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize(
    ("m", "topk", "hidden", "intermediate"),
    [
        (1, 10, 2048, 512),
        (3, 8, 1024, 272),
        (8, 4, 272, 48),
        (9, 2, 512, 16),
        (16, 10, 2048, 512),
        (16, 32, 512, 256),
    ],
)
def test_moe(
    m: int,
    topk: int,
    hidden: int,
    intermediate: int,
    dtype: Any,
    device: Any,
    make_weight: Any,
    poisoned: Any,
    relative_l2: Any,
) -> None:
    w13 = make_experts(make_weight, 40, 2 * intermediate, hidden)
    w2 = make_experts(make_weight, 40, hidden, intermediate)
    x = torch.randn(m, hidden, device=device).to(dtype)
    ids = torch.stack([torch.randperm(40, device=device)[:topk] for _ in range(m)]).int()
    ids[0, -1] = -1
    weights = torch.rand(m, topk, device=device)
    runs = []
    for _ in range(3):
        out = poisoned(m, hidden, dtype=dtype)
        sparse24_moe(x, w13.weight, w2.weight, ids, weights, out=out)
        runs.append(out.clone())
    assert relative_l2(runs[0], moe_reference(x, w13.exact, w2.exact, ids, weights)) <= LIMIT[dtype]
    assert all(torch.equal(run.view(torch.int16), runs[0].view(torch.int16)) for run in runs)


def test_moe_ids_maps_and_weights_on_the_input(
    device: Any, make_weight: Any, poisoned: Any, relative_l2: Any
) -> None:
    w13, w2 = make_experts(make_weight, 6, 128, 256), make_experts(make_weight, 6, 256, 64)
    x = tokens_of(4, 256, BF16, device)
    expert_map = torch.tensor([3, -1, 0, 5, -1, 1, 2, 4, 77], dtype=torch.int32, device=device)
    ids = torch.tensor([[0, 1, 2], [2, 2, 5], [-1, 9, 8], [2**32 + 2, 7, 6]], device=device)
    weights = torch.rand(4, 3, device=device)
    local = torch.tensor([[3, -1, 0], [0, 0, 1], [-1, -1, -1], [-1, 4, 2]])
    for on_input in (False, True):
        out = poisoned(4, 256)
        sparse24_moe(
            x,
            w13.weight,
            w2.weight,
            ids,
            weights,
            expert_map=expert_map,
            router_weight_on_input=on_input,
            out=out,
        )
        want = moe_reference(x, w13.exact, w2.exact, local, weights, on_input)
        assert relative_l2(out, want) <= LIMIT[BF16]
        assert bool((out[2] == 0).all())


def test_moe_with_a_shared_expert_is_refused(device: Any, make_weight: Any) -> None:
    w13, w2 = make_experts(make_weight, 2, 32, 64), make_experts(make_weight, 2, 64, 16)
    ids, weights = torch.zeros(1, 1, dtype=torch.int32, device=device), torch.ones(1, 1, device=device)
    x = tokens_of(1, 64, BF16, device)
    with pytest.raises(UserError, match="takes no shared expert"):
        sparse24_moe(x, w13.weight, w2.weight, ids, weights, shared=x)


def test_moe_opcheck(device: Any, make_weight: Any, check_operator: Any) -> None:
    w13, w2 = make_experts(make_weight, 2, 32, 64), make_experts(make_weight, 2, 64, 16)
    ids, weights = torch.zeros(1, 1, dtype=torch.int32, device=device), torch.ones(1, 1, device=device)
    x = tokens_of(1, 64, BF16, device)
    parts = [(w.values, w.positions, w.scales, w.global_scale) for w in (w13.weight, w2.weight)]
    workspace = torch.full((16,), 7.0, device=device)
    numbers = ("silu", float("inf"), 1.0, 0.0, False, False)
    arguments = (
        x,
        *parts[0],
        *parts[1],
        16,
        ids,
        weights,
        None,
        *numbers,
        workspace,
        torch.full_like(x, 7.0),
    )
    check_operator(torch.ops.gb10.sparse24_moe.default, arguments)
