"""gb10::nvfp4_gemv on a GPU against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gb10.kernels.nvfp4_gemv import nvfp4_gemv  # noqa: E402

BF16, F16 = torch.bfloat16, torch.float16
LIMIT = {BF16: 2e-3, F16: 5e-4}


def limit(reference: Any, dtype: Any) -> float:
    """The limit; where few results lose more by rounding alone (64 of them can), hardly more than that."""
    rounding = (reference.to(dtype).double() - reference).norm() / reference.norm()
    return max(LIMIT[dtype], float(rounding) + 5e-5)


MODEL_SHAPES = [
    (12288, 2048),  # Qwen3-Next GDN in_proj_qkvz
    (64, 2048),  # in_proj_ba
    (9216, 2048),  # qkv
    (2048, 4096),  # o_proj, out_proj
    (1024, 2048),  # shared expert gate and up
    (2048, 512),  # shared expert down
]
ODD_SHAPES = [
    (1, 64),
    (2, 128),
    (15, 192),
    (17, 320),
    (129, 960),
    (257, 1280),
    (70, 2880),
    (33, 5120),
    (40, 8256),
]


def tokens_of(m: int, k: int, dtype: Any, device: Any) -> Any:
    return torch.randn(m, k, device=device).to(dtype)


def expected(x: Any, weight: Any, bias: Any = None) -> Any:
    y = x.double() @ weight.exact.T
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("swizzled", [False, True], ids=["linear", "swizzled"])
@pytest.mark.parametrize(("n", "k"), MODEL_SHAPES)
@pytest.mark.parametrize("m", [1, 4, 16])
def test_the_models_shapes(
    m: int,
    n: int,
    k: int,
    swizzled: bool,
    dtype: Any,
    device: Any,
    make_weight: Any,
    poisoned: Any,
    relative_l2: Any,
) -> None:
    weight, x = make_weight(n, k, swizzled=swizzled), tokens_of(m, k, dtype, device)
    x *= 0.01 if dtype == F16 else 1  # keep sums of large weights within float16
    out = poisoned(m, n, dtype=dtype)
    nvfp4_gemv(x, weight.packed, weight.scales, weight.global_scale, swizzled=swizzled, out=out)
    reference = expected(x, weight)
    assert relative_l2(out, reference) <= limit(reference, dtype)


@pytest.mark.parametrize("swizzled", [False, True], ids=["linear", "swizzled"])
@pytest.mark.parametrize(("n", "k"), ODD_SHAPES)
@pytest.mark.parametrize("m", range(1, 17))
def test_odd_shapes_with_a_bias(
    m: int, n: int, k: int, swizzled: bool, device: Any, make_weight: Any, poisoned: Any
) -> None:
    weight, x = make_weight(n, k, swizzled=swizzled), tokens_of(m, k, BF16, device)
    bias = (torch.randn(n, device=device) * 30).to(BF16)
    out = poisoned(m, n)
    nvfp4_gemv(x, weight.packed, weight.scales, weight.global_scale, bias, swizzled=swizzled, out=out)
    # Element by element: half a step of bf16, and what FP32 sums lose against the sum of magnitudes.
    reference = expected(x, weight, bias)
    magnitude = x.double().abs() @ weight.exact.abs().T + bias.double().abs()
    assert bool(((out.double() - reference).abs() <= reference.abs() * 2**-8 + magnitude * 1e-5).all())


@pytest.mark.parametrize("m", [1, 4])
def test_lm_head(m: int, device: Any, make_weight: Any, poisoned: Any, relative_l2: Any) -> None:
    weight, x = make_weight(151936, 2048), tokens_of(m, 2048, BF16, device)
    out = poisoned(m, 151936)
    nvfp4_gemv(x, weight.packed, weight.scales, weight.global_scale, out=out)
    assert relative_l2(out, expected(x, weight)) <= LIMIT[BF16]


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("scale_bytes", [(0, 0), (1, 1), (0, 7), (0x7E, 0x7E)], ids=str)
def test_the_ends_of_the_scale_format(
    scale_bytes: tuple[int, int], dtype: Any, device: Any, make_weight: Any, poisoned: Any, relative_l2: Any
) -> None:
    weight, x = make_weight(64, 1024, scale_bytes=scale_bytes), tokens_of(3, 1024, dtype, device) * 0.01
    out = poisoned(3, 64, dtype=dtype)
    nvfp4_gemv(x, weight.packed, weight.scales, weight.global_scale, out=out)
    reference = expected(x, weight)
    if scale_bytes == (0, 0):
        assert bool((out == 0).all())
    elif dtype == F16 and scale_bytes[1] <= 7:
        # Subnormal scales make sums near the end of float16: half its smallest step counts as no error.
        assert bool(((out.double() - reference).abs() <= reference.abs() * 2**-10 + 2**-25).all())
    else:
        assert relative_l2(out, reference) <= LIMIT[dtype]


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
def test_every_code_times_every_scale_is_exact(dtype: Any, device: Any, poisoned: Any) -> None:
    """One-hot activations pick single weights out: nothing may be rounded but the output."""
    from gb10.nvfp4 import dequantize

    scale_bytes = torch.arange(0x7F, dtype=torch.uint8, device=device)
    packed = torch.tensor([0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE], dtype=torch.uint8, device=device)
    packed = packed.repeat(0x7F, 4).contiguous()  # one block of all 16 codes, four times: K = 64
    scales = scale_bytes[:, None].expand(-1, 4).contiguous().view(torch.float8_e4m3fn)
    exact = dequantize(packed, scales, 1.0)
    global_scale = torch.ones(1, device=device)
    torch.cuda.synchronize()
    for first in range(0, 64, 16):
        x = torch.zeros(16, 64, dtype=dtype, device=device)
        x[torch.arange(16), first + torch.arange(16)] = 1.0
        out = poisoned(16, 0x7F, dtype=dtype)
        nvfp4_gemv(x, packed, scales, global_scale, out=out)
        assert torch.equal(out, exact[:, first : first + 16].T.to(dtype))


def test_a_token_with_nan_stays_alone(device: Any, make_weight: Any, poisoned: Any) -> None:
    weight, x = make_weight(100, 512), tokens_of(11, 512, BF16, device)
    x[10, 3] = float("nan")
    out = poisoned(11, 100)
    nvfp4_gemv(x, weight.packed, weight.scales, weight.global_scale, out=out)
    assert bool(out[10].isnan().all()) and not bool(out[:10].isnan().any())


def test_two_runs_give_the_same_bits_and_write_nothing_else(
    device: Any, make_weight: Any, poisoned: Any
) -> None:
    weight, x = make_weight(5000, 2048), tokens_of(7, 2048, BF16, device)
    runs = []
    for _ in range(5):
        memory = poisoned(9, 5000)
        nvfp4_gemv(x, weight.packed, weight.scales, weight.global_scale, out=memory[1:8])
        raw = memory.view(torch.int16)
        assert bool((raw[0] == -1).all()) and bool((raw[8] == -1).all())
        runs.append(raw.clone())
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_a_chain_in_a_graph_sees_new_inputs(device: Any, make_weight: Any, relative_l2: Any) -> None:
    """Each link reads what the one before it wrote, and the last writes the first one's input again."""
    first, second = make_weight(2048, 1024), make_weight(1024, 2048)
    x = torch.zeros(2, 1024, dtype=BF16, device=device)
    middle = torch.empty(2, 2048, dtype=BF16, device=device)
    last = torch.empty(2, 1024, dtype=BF16, device=device)

    def chain() -> None:
        nvfp4_gemv(x, first.packed, first.scales, first.global_scale, out=middle)
        nvfp4_gemv(middle, second.packed, second.scales, second.global_scale, out=last)
        nvfp4_gemv(middle, second.packed, second.scales, second.global_scale, out=x)

    chain()  # prepares the device outside the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain()
    for _ in range(20):
        start = (torch.randn(2, 1024, device=device) * 1e-3).to(BF16)
        x.copy_(start)
        graph.replay()
        assert relative_l2(middle, expected(start, first)) <= LIMIT[BF16]
        assert relative_l2(last, expected(middle, second)) <= LIMIT[BF16]
        assert torch.equal(last, x)


def test_runs_on_the_current_stream(device: Any, make_weight: Any, relative_l2: Any) -> None:
    weight, x = make_weight(512, 512), tokens_of(1, 512, BF16, device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        y = nvfp4_gemv(x, weight.packed, weight.scales, weight.global_scale)
        assert not stream.query()
    stream.synchronize()
    assert relative_l2(y, expected(x, weight)) <= LIMIT[BF16]


def test_opcheck(device: Any, make_weight: Any, poisoned: Callable[..., Any], check_operator: Any) -> None:
    weight, x = make_weight(48, 256), tokens_of(2, 256, BF16, device)
    arguments = (x, weight.packed, weight.scales, weight.global_scale, None, False)
    check_operator(torch.ops.gb10.nvfp4_gemv.default, (*arguments, torch.zeros_like(poisoned(2, 48))))
