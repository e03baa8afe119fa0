"""vLLM's NVFP4 quantisation operators in our build, on a GPU: they run where the stock ones refuse.

``GB10_VLLM_FP4`` names the library. ``GB10_STOCK_VLLM`` names the folder that holds vLLM's own
``_C_stable_libtorch.abi3.so``, for the comparison with the stock operators.

The reference is gb10.nvfp4's rounding with the float32 operations of vLLM's kernels in their order:

    block scale = UE4M3(s * (amax * rcp(6)))              amax leaves NaN out unless the block is all NaN
    code        = E2M1(x * rcp(block scale * rcp(s)))     0 where the block scale is 0
    SiLU        = dtype((g / (1 + exp(-g))) * u)          rounded to the input's dtype before amax is taken

PTX leaves some bits of three operations to the GPU: rcp.approx.ftz, ex2.approx and div.approx. Exactly these
are evaluated on the same GPU by one-line kernels (torch's jiterator), everything else on the CPU.
"""

from __future__ import annotations

import functools
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch

from gb10.nvfp4 import e2m1, layout, packing, ue4m3
from gb10.vllm_plugin.cuda import fp4_ops as vllm_fp4

LIBRARY = os.environ.get("GB10_VLLM_FP4")
STOCK = os.environ.get("GB10_STOCK_VLLM")
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
    pytest.mark.skipif(LIBRARY is None, reason="GB10_VLLM_FP4 is not set"),
]

POISON = 0xA5
SHAPES = [
    (1, 16),
    (1, 2048),
    (3, 64),
    (5, 16400),
    (127, 80),
    (128, 2048),
    (129, 2064),
    (200, 48),
    (4096, 2048),
]
DTYPES = [torch.bfloat16, torch.float16]


class Bits(NamedTuple):
    """What a kernel must write, on the CPU."""

    packed: torch.Tensor
    """uint8 ``[rows, K / 2]``"""

    scales: torch.Tensor
    """uint8 ``[rows, K / 16]``, linear"""


def on_gpu(code: str) -> Callable[..., torch.Tensor]:
    function = torch.cuda.jiterator._create_jit_fn(code)

    def call(*arguments: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = function(*(x.to("cuda", torch.float32).contiguous() for x in arguments))
        return result.cpu()

    return call


@pytest.fixture(scope="module")
def rcp() -> Callable[[torch.Tensor], torch.Tensor]:
    return on_gpu(
        "template <typename T> T gb10_rcp(T a) "
        '{ T b; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(b) : "f"(a)); return b; }'
    )


@pytest.fixture(scope="module")
def silu_mul() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return on_gpu(
        "template <typename T> T gb10_silu_mul(T g, T u) { return __fdividef(g, 1.f + __expf(-g)) * u; }"
    )


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    vllm_fp4.install()
    yield
    vllm_fp4.uninstall()


@pytest.fixture
def generator(record_property: Callable[[str, object], None]) -> torch.Generator:
    """Fresh numbers in every run. ``GB10_SEED`` repeats one; a failing test's output has the seed."""
    seed = int(os.environ.get("GB10_SEED") or random.SystemRandom().randrange(2**32))
    record_property("seed", seed)
    print(f"GB10_SEED={seed}")
    return torch.Generator().manual_seed(seed)


def activations(rows: int, columns: int, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Rows of very different size, blocks of zeros, and values that land on ties of E2M1."""
    x = torch.randn(rows, columns, generator=generator)
    x *= torch.exp2(torch.randint(-12, 8, (rows, 1), generator=generator).float())
    x[torch.rand(rows, columns, generator=generator) < 0.05] = -0.0
    blocks = x.view(rows, columns // 16, 16)
    blocks[torch.rand(rows, columns // 16, generator=generator) < 0.02] = 0.0
    ties = torch.tensor(
        [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, -0.25, -5.0]
    )
    blocks[torch.rand(rows, columns // 16, generator=generator) < 0.05] = ties
    return x.to(dtype)


def scale_for(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The reciprocal global scale of shape [1]: calibrated near the largest value, sometimes below it."""
    spread = 0.4 + 1.2 * torch.rand(1, generator=generator)
    return (2688.0 / x.float().abs().nan_to_num(0, 0, 0).max().clamp(min=1e-4) * spread).float()


def reference(x: torch.Tensor, scale: torch.Tensor, rcp: Callable[[torch.Tensor], torch.Tensor]) -> Bits:
    """``x``: ``[rows, K]``, the dtype that the kernel quantises; ``scale``: float32 ``[1]`` or ``[rows]``."""
    blocks = x.float().reshape(x.shape[0], -1, 16)
    spread = scale.float().reshape(-1, 1)
    amax = blocks.abs().masked_fill(blocks.isnan(), 0.0).amax(dim=-1)
    amax = amax.masked_fill(blocks.isnan().all(dim=-1), float("nan"))
    bits = ue4m3.encode(spread * (amax * rcp(torch.tensor([6.0]))))
    decoded = ue4m3.decode(bits)
    factor = torch.where(decoded == 0, 0.0, rcp(decoded * rcp(spread)))
    codes = e2m1.encode(blocks * factor.unsqueeze(-1))
    return Bits(packing.pack(codes.flatten(-2)), bits)


def silu_reference(
    x: torch.Tensor, silu_mul: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return silu_mul(gate, up).to(x.dtype)


def poisoned(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    data = torch.full((*shape, dtype.itemsize), POISON, dtype=torch.uint8, device="cuda")
    return data.view(dtype).squeeze(-1)


def written_scales(bits: torch.Tensor, into: torch.Tensor) -> None:
    """Put linear scales into the flat, swizzled region ``into``; the padding keeps what it has."""
    mask = layout.swizzle_128x4(torch.ones_like(bits)).flatten().bool()
    into[mask] = layout.swizzle_128x4(bits).flatten()[mask]


def same(got: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    got = got.cpu().view(torch.uint8).flatten()
    wanted = wanted.view(torch.uint8).flatten()
    assert got.shape == wanted.shape, what
    wrong = (got != wanted).nonzero().flatten()
    first = [(int(i), hex(int(got[i])), hex(int(wanted[i]))) for i in wrong[:8]]
    assert not len(wrong), f"{what}: {len(wrong)} of {len(got)} bytes differ: (index, got, wanted) {first}"


def test_helpers_do_what_ptx_says(
    rcp: Callable[..., torch.Tensor], silu_mul: Callable[..., torch.Tensor]
) -> None:
    x = torch.tensor([1.0, 2.0, -4.0, 2.0**-126, 2.0**-127, float("inf")])
    assert rcp(x).tolist() == [1.0, 0.5, -0.25, 2.0**126, float("inf"), 0.0]
    x = torch.linspace(-8, 8, 1001)
    torch.testing.assert_close(silu_mul(x, x), torch.nn.functional.silu(x) * x, rtol=1e-5, atol=1e-6)
    x = torch.rand(100_000) + 0.5
    assert float((rcp(x).double() * x.double() - 1).abs().max()) < 2.0**-22


@pytest.mark.parametrize("swizzled", [True, False], ids=["swizzled", "linear"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quant(
    shape: tuple[int, int],
    dtype: torch.dtype,
    swizzled: bool,
    rcp: Callable[..., torch.Tensor],
    generator: torch.Generator,
) -> None:
    x = activations(*shape, dtype, generator)
    scale = scale_for(x, generator)
    wanted = reference(x, scale, rcp)
    scales = layout.swizzle_128x4(wanted.scales) if swizzled else wanted.scales
    packed, got = torch.ops._C.scaled_fp4_quant(x.cuda(), scale.cuda(), swizzled)
    assert (packed.dtype, got.dtype) == (torch.uint8, torch.int32 if swizzled else torch.uint8)
    same(packed, wanted.packed, "packed")
    same(got, scales, "block scales")

    packed, got = poisoned(*packed.shape), poisoned(*got.shape, dtype=got.dtype)
    torch.ops._C.scaled_fp4_quant.out(x.cuda(), scale.cuda(), swizzled, output=packed, output_scale=got)
    same(packed, wanted.packed, "packed, out variant")
    same(got, scales, "block scales, out variant")


@pytest.mark.parametrize("swizzled", [True, False], ids=["swizzled", "linear"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quant_into_wider_rows(
    dtype: torch.dtype, swizzled: bool, rcp: Callable[..., torch.Tensor], generator: torch.Generator
) -> None:
    rows, columns, padded = 130, 336, 512
    x = activations(rows, columns, dtype, generator)
    scale = scale_for(x, generator)
    wide = torch.zeros(rows, padded, dtype=dtype)
    wide[:, :columns] = x
    wanted = reference(wide, scale, rcp)
    scales = layout.swizzle_128x4(wanted.scales) if swizzled else wanted.scales
    packed, got = poisoned(rows, padded // 2), poisoned(*scales.shape)
    torch.ops._C.scaled_fp4_quant.out(x.cuda(), scale.cuda(), swizzled, output=packed, output_scale=got)
    same(packed, wanted.packed, "packed")
    same(got, scales, "block scales")


def test_ties_go_to_the_even_code() -> None:
    """Block scales that are powers of two, so that the tie reaches E2M1 as it stands."""
    values = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5.0, -0.0]
    codes = [0, 2, 2, 4, 4, 6, 6, 7, 8, 10, 10, 12, 12, 14, 14, 8]
    powers = torch.exp2(torch.arange(-6, 9).float())
    x = (powers[:, None] * torch.tensor(values)).to(torch.bfloat16)
    packed, scales = torch.ops._C.scaled_fp4_quant(x.cuda(), torch.ones(1, device="cuda"), False)
    wanted = packing.pack(torch.tensor(codes, dtype=torch.uint8)).expand(len(powers), 8)
    same(packed, wanted.contiguous(), "packed")
    same(scales, ue4m3.encode(powers), "block scales")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity(
    dtype: torch.dtype, rcp: Callable[..., torch.Tensor], generator: torch.Generator
) -> None:
    x = activations(64, 256, dtype, generator)
    scale = scale_for(x, generator)
    nan, infinity = float("nan"), float("inf")
    x[0, 3], x[1, 20], x[2, 40], x[3, 41] = nan, -nan, infinity, -infinity
    x[4, 16:32] = nan
    x[5] = -nan
    x[6, :16] = infinity
    x[7, 0], x[7, 1] = nan, -infinity
    wanted = reference(x, scale, rcp)
    assert {0x7F, 0x7E} <= set(wanted.scales.flatten().tolist())
    packed, scales = torch.ops._C.scaled_fp4_quant(x.cuda(), scale.cuda(), False)
    same(packed, wanted.packed, "packed")
    same(scales, wanted.scales, "block scales")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != (4096, 2048)], ids=str)
def test_silu_and_mul(
    shape: tuple[int, int],
    dtype: torch.dtype,
    rcp: Callable[..., torch.Tensor],
    silu_mul: Callable[..., torch.Tensor],
    generator: torch.Generator,
) -> None:
    rows, columns = shape
    x = activations(rows, 2 * columns, dtype, generator)
    quantised = silu_reference(x, silu_mul)
    scale = scale_for(quantised, generator)
    wanted = reference(quantised, scale, rcp)
    expected = torch.full((layout.swizzle_128x4(wanted.scales).numel(),), POISON, dtype=torch.uint8)
    written_scales(wanted.scales, expected)
    packed, scales = poisoned(rows, columns // 2), poisoned(len(expected))
    torch.ops._C.silu_and_mul_nvfp4_quant(packed, scales, x.cuda(), scale.cuda())
    same(packed, wanted.packed, "packed")
    same(scales, expected, "block scales")


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "silu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("experts", "rows", "columns"),
    [
        (16, 40, 2048),  # 16 offsets at a time
        (10, 40, 512),  # one by one
        (10, 3, 528),  # 66 threads a row, which upstream halves to 33
        (7, 30, 80),
        (512, 160, 512),
        (16, 2600, 2048),  # more than one turn a thread: offsets in shared memory, four at a time
        (10, 2600, 2048),  # and one by one
    ],
    ids=str,
)
def test_experts(
    experts: int,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    fused: bool,
    rcp: Callable[..., torch.Tensor],
    silu_mul: Callable[..., torch.Tensor],
    generator: torch.Generator,
) -> None:
    x = activations(rows, columns * (2 if fused else 1), dtype, generator)
    quantised = silu_reference(x, silu_mul) if fused else x
    # The last rows belong to nobody; some experts have no row.
    owned = rows - min(rows // 4, 5)
    owner = torch.randint(0, experts, (owned,), generator=generator)
    counts = torch.bincount(owner, minlength=experts)
    offsets = torch.zeros(experts + 1, dtype=torch.int32)
    offsets[1:] = counts.cumsum(0)
    scale_offsets = torch.zeros(experts + 1, dtype=torch.int32)
    scale_offsets[1:] = ((counts + 127) // 128 * 128).cumsum(0)
    scale = scale_for(quantised, generator) * (0.5 + torch.rand(experts, generator=generator))

    wanted = reference(quantised[:owned], scale.repeat_interleave(counts), rcp)
    width = -(-columns // 64) * 4
    expected = torch.full((int(scale_offsets[-1]) * width,), POISON, dtype=torch.uint8)
    for expert in range(experts):
        if counts[expert]:
            region = expected[int(scale_offsets[expert]) * width : int(scale_offsets[expert + 1]) * width]
            written_scales(wanted.scales[offsets[expert] : offsets[expert + 1]], region)
    packed = poisoned(rows, columns // 2)
    scales = poisoned(int(scale_offsets[-1]), width // 4, dtype=torch.int32)
    name = "silu_and_mul_scaled_fp4_experts_quant" if fused else "scaled_fp4_experts_quant"
    operator = getattr(torch.ops._C, name)
    operator(packed, scales, x.cuda(), scale.cuda(), offsets.cuda(), scale_offsets.cuda())
    same(packed[:owned], wanted.packed, "packed")
    same(
        packed[owned:], torch.full((rows - owned, columns // 2), POISON, dtype=torch.uint8), "rows of nobody"
    )
    same(scales, expected, "block scales")


def test_captured_in_a_graph(rcp: Callable[..., torch.Tensor], generator: torch.Generator) -> None:
    x = activations(100, 512, torch.bfloat16, generator)
    scale = scale_for(x, generator)
    held, held_scale = torch.zeros_like(x, device="cuda"), scale.cuda()
    packed, scales = poisoned(100, 256), poisoned(128, 32)
    run = functools.partial(
        torch.ops._C.scaled_fp4_quant.out, held, held_scale, True, output=packed, output_scale=scales
    )
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    held.copy_(x)
    packed.fill_(POISON)
    graph.replay()
    torch.cuda.synchronize()
    wanted = reference(x, scale, rcp)
    same(packed, wanted.packed, "packed")
    same(scales, layout.swizzle_128x4(wanted.scales), "block scales")


@pytest.mark.parametrize("swizzled", [True, False], ids=["swizzled", "linear"])
def test_no_rows(swizzled: bool) -> None:
    x, scale = torch.empty(0, 64, dtype=torch.bfloat16, device="cuda"), torch.ones(1, device="cuda")
    packed, scales = torch.ops._C.scaled_fp4_quant(x, scale, swizzled)
    assert packed.shape == (0, 32) and scales.shape == (0, 1 if swizzled else 4)
    torch.cuda.synchronize()


def refused(change: dict[str, torch.Tensor], message: str) -> None:
    good = {
        "input": torch.ones(4, 64, dtype=torch.bfloat16, device="cuda"),
        "input_scale": torch.ones(1, device="cuda"),
        "output": poisoned(4, 32),
        "output_scale": poisoned(128, 4),
    }
    tensors = good | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops._C.scaled_fp4_quant.out(
            tensors["input"],
            tensors["input_scale"],
            True,
            output=tensors["output"],
            output_scale=tensors["output_scale"],
        )
    assert bool((good["output"] == POISON).all())


def test_bad_arguments_are_refused_by_name() -> None:
    def gpu(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.ones(*shape, dtype=dtype, device="cuda")

    refused({"input": gpu(4, 64, dtype=torch.float32)}, "input is neither float16 nor bfloat16")
    refused({"input": gpu(64)}, "input has 1 dimensions")
    refused({"input": gpu(4, 72)}, "input has rows of 72 values")
    refused({"input": gpu(64, 4).t()}, "input is not contiguous")
    refused({"input": gpu(4 * 64 + 8)[8:].view(4, 64)}, "input does not start at a multiple of 32 bytes")
    refused({"input_scale": gpu(1)}, "input_scale is not float32")
    refused({"input_scale": torch.ones(1)}, "input_scale is not on a CUDA device")
    refused({"input_scale": gpu(0, dtype=torch.float32)}, "input_scale is empty")
    refused({"output": gpu(3, 32, dtype=torch.uint8)}, r"output is not of shape \[4, K/2\]")
    refused({"output": gpu(4, 24, dtype=torch.uint8)}, "output has rows of 24 bytes")
    refused({"output": gpu(4, 32, dtype=torch.int16)}, "output has elements of 2 bytes")
    refused({"output_scale": poisoned(127, 4)}, "output_scale has 508 bytes, 512 are written")
    x, scale, bytes_ = gpu(4, 128), gpu(1, dtype=torch.float32), torch.uint8
    with pytest.raises(RuntimeError, match="result has rows of 64 bytes, 32 are wanted"):
        torch.ops._C.silu_and_mul_nvfp4_quant(gpu(4, 64, dtype=bytes_), gpu(128, 8, dtype=bytes_), x, scale)
    with pytest.raises(RuntimeError, match="result_block_scale has 4 bytes, 512 are written"):
        torch.ops._C.silu_and_mul_nvfp4_quant(gpu(4, 32, dtype=bytes_), gpu(1, 4, dtype=bytes_), x, scale)
    with pytest.raises(RuntimeError, match="input_offset_by_experts is not contiguous"):
        offsets = gpu(6, dtype=torch.int32)
        torch.ops._C.scaled_fp4_experts_quant(
            gpu(4, 64, dtype=bytes_), gpu(128, 2, dtype=torch.int32), x, gpu(2, dtype=torch.float32),
            offsets[::2], offsets[:3],
        )  # fmt: skip


STOCK_SCRIPT = """
import os, pathlib, torch
from gb10.vllm_plugin.cuda import fp4_ops as vllm_fp4

x = torch.randn(130, 256, device="cuda").to(torch.bfloat16)
scale = torch.tensor([100.0], device="cuda")
outputs = [torch.zeros(shape, dtype=torch.uint8, device="cuda") for shape in ((130, 128), (256, 16))]
offsets = torch.tensor([0, 60, 130], dtype=torch.int32, device="cuda")
scale_offsets = torch.tensor([0, 128, 256], dtype=torch.int32, device="cuda")
wide, expert_scale = torch.cat([x, x], dim=-1).contiguous(), scale.repeat(2)
expert_outputs = [outputs[0], outputs[1].view(torch.int32)]
calls = {
    "scaled_fp4_quant": lambda op: op(x, scale, True),
    "scaled_fp4_quant.out": lambda op: op.out(x, scale, True, output=outputs[0], output_scale=outputs[1]),
    "silu_and_mul_nvfp4_quant": lambda op: op(*outputs, wide, scale),
    "scaled_fp4_experts_quant": lambda op: op(*expert_outputs, x, expert_scale, offsets, scale_offsets),
    "silu_and_mul_scaled_fp4_experts_quant":
        lambda op: op(*expert_outputs, wide, expert_scale, offsets, scale_offsets),
}
assert set(calls) == set(vllm_fp4.SCHEMAS)

def run(name):
    for tensor in outputs:
        tensor.fill_(0)
    result = calls[name](getattr(torch.ops._C, name.partition(".")[0]))
    torch.cuda.synchronize()
    return [tensor.clone() for tensor in (result or outputs)]

def state(when):
    answers = {}
    for name in calls:
        try:
            answers[name] = run(name)
            print(when, name, "ran")
        except (RuntimeError, AttributeError) as error:
            answers[name] = None
            print(when, name, "refused:", str(error).splitlines()[0])
    return answers

if folder := os.environ.get("GB10_STOCK_VLLM"):
    torch.ops.load_library(str(pathlib.Path(folder, "_C_stable_libtorch.abi3.so")))
before = state("before")
vllm_fp4.install()
ours = state("installed")
vllm_fp4.uninstall()
after = state("after")
for name in calls:
    assert ours[name] is not None, name
    assert (before[name] is None) == (after[name] is None), name
    if before[name] is not None:
        assert all(torch.equal(a, b) for a, b in zip(before[name], ours[name])), name
"""


@pytest.mark.skipif(
    STOCK is None and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
    reason="torch before 2.13 crashes on a call of a schema that is gone; set GB10_STOCK_VLLM",
)
def test_stock_operators_refuse_and_ours_run() -> None:
    done = subprocess.run([sys.executable, "-c", STOCK_SCRIPT], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for name in vllm_fp4.SCHEMAS:
        assert f"installed {name} ran" in lines
        for when in ("before", "after"):
            (line,) = [line for line in lines if line.startswith(f"{when} {name} ")]
            if STOCK is None and when == "before":
                assert "refused: '_OpNamespace' '_C' object has no attribute" in line, line
            elif STOCK is not None and torch.cuda.get_device_capability() < (10, 0):
                # between the two: the C++ function and the source line that refused
                assert re.search(r" refused: \w+, \S+:\d+, No compiled .* kernel for SM \d+\.", line), line
