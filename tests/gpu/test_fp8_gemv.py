"""gb10::fp8_gemv on a GPU against float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")

from gb10.kernels.fp8_gemv import fp8_gemv  # noqa: E402

BF16, F16 = torch.bfloat16, torch.float16
LIMIT = {BF16: 2e-3, F16: 5e-4}

MODEL_SHAPES = [(12288, 2048), (64, 2048), (9216, 2048), (2048, 4096), (2048, 512)]
ODD_SHAPES = [(1, 64), (15, 192), (17, 320), (129, 960), (300, 2880), (40, 8256), (70, 20480)]


class Fp8Weight(NamedTuple):
    weight: Any
    scales: Any
    exact: Any
    """float64 ``[N, K]``."""


def make(n: int, k: int, kind: str, device: Any) -> Fp8Weight:
    """Every finite byte; returns when the weight is in memory, which the kernel reads early."""
    codes = torch.randint(0, 254, (n, k), dtype=torch.uint8, device=device)
    codes += (codes >= 0x7F).to(torch.uint8)  # 0x7F and 0xFF are NaN
    weight = codes.view(torch.float8_e4m3fn)
    if kind == "block":
        scales = torch.rand(-(-n // 128), -(-k // 128), device=device) * 0.02 + 0.001
        spread = scales.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
    else:
        scales = torch.rand(n, 1, device=device) * 0.02 + 0.001
        spread = scales
        scales = scales if kind == "column" else scales.flatten()
    exact = weight.float().double() * spread.double()
    torch.cuda.synchronize()
    return Fp8Weight(weight, scales, exact)


def tokens_of(m: int, k: int, dtype: Any, device: Any) -> Any:
    return (torch.randn(m, k, device=device) * (0.05 if dtype == F16 else 1.0)).to(dtype)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("kind", ["row", "column", "block"])
@pytest.mark.parametrize(("n", "k"), MODEL_SHAPES)
@pytest.mark.parametrize("m", [1, 4, 16])
def test_the_models_shapes(
    m: int, n: int, k: int, kind: str, dtype: Any, device: Any, poisoned: Any, near: Any
) -> None:
    w, x = make(n, k, kind, device), tokens_of(m, k, dtype, device)
    out = poisoned(m, n, dtype=dtype)
    fp8_gemv(x, w.weight, w.scales, out=out)
    assert near(out, x.double() @ w.exact.T, LIMIT[dtype])


@pytest.mark.parametrize("kind", ["row", "block"])
@pytest.mark.parametrize(("n", "k"), ODD_SHAPES)
@pytest.mark.parametrize("m", range(1, 17))
def test_odd_shapes_with_a_bias(m: int, n: int, k: int, kind: str, device: Any, poisoned: Any) -> None:
    w, x = make(n, k, kind, device), tokens_of(m, k, BF16, device)
    bias = (torch.randn(n, device=device) * 30).to(BF16)
    torch.cuda.synchronize()  # the kernel reads a bias early, too
    out = poisoned(m, n)
    fp8_gemv(x, w.weight, w.scales, bias, out=out)
    reference = x.double() @ w.exact.T + bias.double()
    magnitude = x.double().abs() @ w.exact.abs().T + bias.double().abs()
    # Element by element: half a step of bf16, and what FP32 sums lose against the sum of magnitudes.
    assert bool(((out.double() - reference).abs() <= reference.abs() * 2**-8 + magnitude * 1e-5).all())


@pytest.mark.parametrize("m", [1, 16])
def test_a_weight_of_many_tiles(m: int, device: Any, poisoned: Any, near: Any) -> None:
    w, x = make(151936, 1024, "row", device), tokens_of(m, 1024, BF16, device)
    out = poisoned(m, 151936)
    fp8_gemv(x, w.weight, w.scales, out=out)
    assert near(out, x.double() @ w.exact.T, LIMIT[BF16])


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("kind", ["row", "block"])
def test_every_byte_is_exact(kind: str, dtype: Any, device: Any, poisoned: Any) -> None:
    """One-hot activations pick single weights out: subnormals and both zeros come through as they are."""
    codes = torch.arange(256, dtype=torch.uint8, device=device)
    codes[0x7F], codes[0xFF] = 0, 0x80
    weight = codes.reshape(4, 64).contiguous().view(torch.float8_e4m3fn)
    scales = torch.ones(4 if kind == "row" else (1, 1), device=device)
    torch.cuda.synchronize()
    for first in range(0, 64, 16):
        x = torch.zeros(16, 64, dtype=dtype, device=device)
        x[torch.arange(16), first + torch.arange(16)] = 1.0
        out = poisoned(16, 4, dtype=dtype)
        fp8_gemv(x, weight, scales, out=out)
        assert torch.equal(out, weight.float()[:, first : first + 16].T.to(dtype))


def test_a_token_with_nan_stays_alone(device: Any, poisoned: Any) -> None:
    w, x = make(100, 512, "row", device), tokens_of(11, 512, BF16, device)
    x[10, 3] = float("nan")
    out = poisoned(11, 100)
    fp8_gemv(x, w.weight, w.scales, out=out)
    assert bool(out[10].isnan().all()) and not bool(out[:10].isnan().any())


@pytest.mark.parametrize("n", [40, 5000, 40000])
def test_two_runs_give_the_same_bits_and_write_nothing_else(n: int, device: Any, poisoned: Any) -> None:
    w, x = make(n, 2048, "block", device), tokens_of(7, 2048, BF16, device)
    runs = []
    for _ in range(5):
        memory = poisoned(9, n)
        fp8_gemv(x, w.weight, w.scales, out=memory[1:8])
        raw = memory.view(torch.int16)
        assert bool((raw[0] == -1).all()) and bool((raw[8] == -1).all())
        runs.append(raw.clone())
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_a_chain_in_a_graph_sees_new_inputs(device: Any, near: Any) -> None:
    """Each link reads what the one before it wrote, and the last writes the first one's input again."""
    first, second = make(2048, 1024, "row", device), make(1024, 2048, "block", device)
    x = torch.zeros(2, 1024, dtype=BF16, device=device)
    middle = torch.empty(2, 2048, dtype=BF16, device=device)
    last = torch.empty(2, 1024, dtype=BF16, device=device)

    def chain() -> None:
        fp8_gemv(x, first.weight, first.scales, out=middle)
        fp8_gemv(middle, second.weight, second.scales, out=last)
        fp8_gemv(middle, second.weight, second.scales, out=x)

    chain()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain()
    for _ in range(20):
        start = (torch.randn(2, 1024, device=device) * 1e-3).to(BF16)
        x.copy_(start)
        graph.replay()
        assert near(middle, start.double() @ first.exact.T, LIMIT[BF16])
        assert near(last, middle.double() @ second.exact.T, LIMIT[BF16])
        assert torch.equal(last, x)


def test_opcheck(device: Any, check_operator: Any) -> None:
    w, x = make(48, 256, "block", device), tokens_of(2, 256, BF16, device)
    out = torch.zeros(2, 48, dtype=BF16, device=device)
    check_operator(torch.ops.gb10.fp8_gemv.default, (x, w.weight, w.scales, None, out))
