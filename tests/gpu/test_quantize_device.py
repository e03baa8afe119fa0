"""NVFP4 quantisation on a GPU, bit for bit against gb10.nvfp4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gb10 import nvfp4  # noqa: E402
from gb10.kernels.quantize import (  # noqa: E402
    quantize_nvfp4,
    quantize_nvfp4_experts,
    silu_mul_quantize_nvfp4,
)
from gb10.nvfp4 import e2m1, packing, ue4m3  # noqa: E402

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
FP8 = torch.float8_e4m3fn
DTYPES = [BF16, F16, F32]
Poisoned = Callable[..., Any]

SHAPES = [
    (1, 16),
    (1, 32),
    (3, 48),
    (5, 80),
    (7, 176),
    (31, 528),
    (128, 64),
    (129, 512),
    (2, 3, 272),
    (255, 2048),
    (260, 2880),
    (4, 33, 4112),
    (17, 16384 + 16),
    (1031, 2064),
]


def formula(x: Any, scale: float) -> tuple[Any, Any]:
    """The arithmetic of `gb10.nvfp4.quantize` without its refusals: codes uint8 `[..., K]`, scale bytes."""
    blocks = x.float().reshape(*x.shape[:-1], x.shape[-1] // 16, 16)
    spread = torch.tensor(scale, dtype=F32)
    wanted = blocks.abs().amax(dim=-1) / (nvfp4.E2M1_MAX * spread)
    scales = ue4m3.encode(wanted.clamp(nvfp4.UE4M3_MIN_POSITIVE, nvfp4.UE4M3_MAX))
    steps = ue4m3.decode(scales) * spread
    return e2m1.encode(blocks / steps.unsqueeze(-1)).flatten(-2), scales


def check(x: Any, scale: float, swizzled: bool, poisoned: Poisoned) -> None:
    """One call on poisoned outputs against the formula, and the reference where it takes the input."""
    rows, columns = x.shape[:-1].numel(), x.shape[-1] // 16
    shape = nvfp4.layout.padded_shape(rows, columns) if swizzled else (*x.shape[:-1], columns)
    packed = poisoned(*x.shape[:-1], x.shape[-1] // 2, dtype=torch.uint8)
    scales = poisoned(*shape, dtype=FP8)
    given = quantize_nvfp4(
        x, torch.tensor([scale], device=x.device), swizzled=swizzled, packed=packed, scales=scales
    )
    assert given[0] is packed and given[1] is scales
    codes, wanted = formula(x.cpu(), scale)
    if bool(x.isfinite().all()):
        reference = nvfp4.quantize(x.cpu(), scale)
        assert torch.equal(reference.packed, packing.pack(codes))
        assert torch.equal(reference.block_scales.view(torch.uint8), wanted)
    if swizzled:
        wanted = nvfp4.swizzle_128x4(wanted.reshape(rows, columns))
    assert torch.equal(scales.cpu().view(torch.uint8), wanted)
    assert torch.equal(packed.cpu(), packing.pack(codes))


def normal(shape: tuple[int, ...], dtype: Any, device: Any, seed: int = 20261122) -> Any:
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(shape, device=device, generator=generator)
    # Rows and blocks of different size, so that block scales take all their values.
    spread = torch.randn((*shape[:-1], shape[-1] // 16, 1), device=device, generator=generator)
    return (x.reshape(*shape[:-1], -1, 16) * (2 * spread).exp()).reshape(shape).to(dtype)


@pytest.mark.parametrize("swizzled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_of_the_reference(
    shape: tuple[int, ...], dtype: Any, swizzled: bool, device: Any, poisoned: Poisoned
) -> None:
    x = normal(shape, dtype, device)
    calibrated = float(nvfp4.global_scale_for(x.abs().amax()))
    for scale in (calibrated, calibrated / 7, 2.0**-7, 1.0):
        check(x, scale, swizzled, poisoned)


@pytest.mark.parametrize("swizzled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_bits_at_all(dtype: Any, swizzled: bool, device: Any, poisoned: Poisoned) -> None:
    """Random bit patterns: NaN of both signs, infinities, subnormals, and magnitudes all over the range."""
    size = torch.empty((), dtype=dtype).element_size()
    x = torch.randint(0, 256, (300, 1040 * size), dtype=torch.uint8, device=device).view(dtype)
    for scale in (1.0, 3e-4, 1e-35, 1e-30, 1e10, 1e30, 2.0**-126, float.fromhex("0x1.fffffep-9")):
        check(x, scale, swizzled, poisoned)


@pytest.mark.parametrize("scale", [1.0, 0.75, 2.0**-12, 0.0123, 1 / 3, float.fromhex("0x1.fffffep-3")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ties(dtype: Any, scale: float, device: Any, poisoned: Poisoned) -> None:
    """Multiples of a quarter of the step, and of the step a bit off: every tie of E2M1 and of UE4M3."""
    generator = torch.Generator(device).manual_seed(5)
    quarters = torch.randint(-28, 29, (512, 1024), device=device, generator=generator).float() * 0.25
    sizes = torch.exp2(torch.randint(-9, 9, (512, 64, 1), device=device, generator=generator).float())
    x = (quarters.reshape(512, 64, 16) * sizes * scale).reshape(512, 1024)
    bent = (
        x.view(torch.int32) + torch.randint(-1, 2, x.shape, device=device, generator=generator).int()
    ).view(F32)
    for values in (x, bent.nan_to_num()):
        check(values.to(dtype), scale, False, poisoned)


@pytest.mark.parametrize("swizzled", [False, True])
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 3e38, 1e-40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_rows(dtype: Any, special: float, swizzled: bool, device: Any, poisoned: Poisoned) -> None:
    """One special value in a block, a whole row of them, and its neighbours as ever."""
    x = normal((9, 144), dtype, device)
    x[1, 37] = special
    x[4] = special
    x[7, 128:] = -special
    check(x, 0.01, swizzled, poisoned)


@pytest.mark.parametrize("swizzled", [False, True])
@pytest.mark.parametrize("shape", [(0, 64), (3, 0, 32), (0, 5, 2048)])
def test_empty_inputs(shape: tuple[int, ...], swizzled: bool, device: Any) -> None:
    packed, scales = quantize_nvfp4(
        torch.empty(shape, dtype=BF16, device=device), torch.ones(1, device=device), swizzled=swizzled
    )
    assert packed.shape == (*shape[:-1], shape[-1] // 2)
    assert scales.numel() == 0


def gated_bounds(x: Any) -> tuple[Any, Any]:
    """The least and the largest silu(gate) * up, in the dtype of `x`, by the operator's error bound."""
    gate, up = (half.double() for half in x.cpu().chunk(2, dim=-1))
    exact = gate * torch.sigmoid(gate) * up
    slack = exact.abs() * (2.0**-20 + gate.abs() * 2.0**-23)
    return (exact - slack).to(x.dtype), (exact + slack).to(x.dtype)


@pytest.mark.parametrize("swizzled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16), (5, 80), (130, 768), (2, 65, 2064)], ids=str)
def test_silu_mul(
    shape: tuple[int, ...], dtype: Any, swizzled: bool, device: Any, poisoned: Poisoned
) -> None:
    """Exact where the bound leaves one value; else between the codes of both ends. Few may be left open."""
    k = shape[-1]
    x = (normal((*shape[:-1], 2 * k), F32, device) * 0.5).clamp(-60, 60).to(dtype)
    low, high = gated_bounds(x)
    scale = float(nvfp4.global_scale_for(high.float().abs().amax()))
    rows, columns = x.shape[:-1].numel(), k // 16
    packed = poisoned(*shape[:-1], k // 2, dtype=torch.uint8)
    scales = poisoned(
        *(nvfp4.layout.padded_shape(rows, columns) if swizzled else (*shape[:-1], columns)), dtype=FP8
    )
    silu_mul_quantize_nvfp4(
        x, torch.tensor([scale], device=device), swizzled=swizzled, packed=packed, scales=scales
    )
    got = scales.cpu()
    if swizzled:
        padded = torch.zeros_like(got.view(torch.uint8))
        linear = nvfp4.unswizzle_128x4(got, rows, columns)
        padded = nvfp4.swizzle_128x4(linear.view(torch.uint8))
        assert torch.equal(got.view(torch.uint8), padded)  # the padding is zero
        got = linear.reshape(*shape[:-1], columns)
    got = got.view(torch.uint8)

    def blocks(values: Any) -> Any:
        return values.float().reshape(*shape[:-1], columns, 16)

    ends = torch.stack((blocks(low), blocks(high)))
    top = ends.abs().amax(dim=0).amax(dim=-1)
    bottom = ends.abs().amin(dim=0).amax(dim=-1)
    byte_of = [
        ue4m3.encode((amax / (6.0 * torch.tensor(scale))).clamp(2.0**-9, 448.0)).int()
        for amax in (bottom, top)
    ]
    assert bool(((byte_of[0] <= got.int()) & (got.int() <= byte_of[1])).all())
    steps = (ue4m3.decode(got) * torch.tensor(scale)).unsqueeze(-1)
    codes = packing.unpack(packed.cpu()).reshape(ends.shape[1:])
    end_codes = [e2m1.encode(end / steps) for end in ends]
    numbers, end_numbers = e2m1.decode(codes), [e2m1.decode(end) for end in end_codes]
    assert bool(((end_numbers[0] <= numbers) & (numbers <= end_numbers[1])).all())
    assert torch.equal(
        codes >> 3, torch.where(end_codes[0] >> 3 == end_codes[1] >> 3, end_codes[0] >> 3, codes >> 3)
    )
    settled = (byte_of[0] == byte_of[1]).double().mean() * (end_codes[0] == end_codes[1]).double().mean()
    assert float(settled) > 0.97


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul_of_special_values(dtype: Any, device: Any) -> None:
    """A NaN gate or up, an infinite gate: as the product in torch."""
    x = torch.ones(4, 64, dtype=dtype, device=device)
    x[0, 3] = float("nan")
    x[1, 40] = float("nan")
    x[2, 5] = float("inf")
    x[3, 6] = -float("inf")
    packed, scales = silu_mul_quantize_nvfp4(x, torch.tensor([0.5], device=device))
    scales = scales.view(torch.uint8).cpu()
    assert scales[[0, 1, 3], 0].tolist() == [0x7F] * 3  # silu(-inf) is -inf * 0
    assert scales[2, 0] == 0x7E
    codes = packing.unpack(packed.cpu())
    assert set(codes[[0, 1, 3], :16].flatten().tolist()) == {7}
    assert codes[2, 5] == 7 and set(codes[2, :5].tolist()) == {0}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("sizes", "k"),
    [([5], 64), ([0, 3, 0, 129, 1, 0], 528), ([128, 128], 2048), ([2] * 300 + [0] * 212, 96), ([0, 0], 32)],
    ids=["one", "gaps", "full", "512 experts", "none"],
)
def test_experts(sizes: list[int], k: int, dtype: Any, device: Any, poisoned: Poisoned) -> None:
    """Each expert as alone; rows and scales past the last expert stay as they were."""
    spare = 3
    count, rows = len(sizes), sum(sizes)
    x = normal((rows + spare, k), dtype, device)
    room = [-(-size // 128) * 128 for size in sizes]
    starts = torch.tensor([0, *sizes]).cumsum(0).int()
    tiles = torch.tensor([0, *room]).cumsum(0).int()
    scales_of = torch.rand(count) * 0.1 + 1e-3
    packed = poisoned(rows + spare, k // 2, dtype=torch.uint8)
    scales = poisoned(int(tiles[-1]) + 128, -(-k // 64) * 4, dtype=FP8)
    offsets = (starts.to(device), tiles.to(device))
    quantize_nvfp4_experts(x, scales_of.to(device), *offsets, packed=packed, scales=scales)
    host, got_packed, got_scales = x.cpu(), packed.cpu(), scales.cpu().view(torch.uint8)
    for expert, size in enumerate(sizes):
        if size == 0:
            continue
        first, tile = int(starts[expert]), int(tiles[expert])
        one = nvfp4.quantize(host[first : first + size], scales_of[expert])
        assert torch.equal(got_packed[first : first + size], one.packed)
        wanted = nvfp4.swizzle_128x4(one.block_scales.view(torch.uint8))
        assert torch.equal(got_scales[tile : tile + room[expert]], wanted)
    assert got_packed[rows:].unique().tolist() == [0xFF]
    assert got_scales[int(tiles[-1]) :].unique().tolist() == [0xFF]


def test_runs_give_the_same_bits(device: Any) -> None:
    x = normal((1000, 4112), BF16, device)
    scale = torch.tensor([0.01], device=device)
    for function in (quantize_nvfp4, silu_mul_quantize_nvfp4):
        values = x[:, :4096].contiguous()
        first = [out.view(torch.uint8).clone() for out in function(values, scale, swizzled=True)]
        for _ in range(3):
            again = function(values, scale, swizzled=True)
            assert all(torch.equal(a, b.view(torch.uint8)) for a, b in zip(first, again, strict=True))


def test_captures_into_a_graph(device: Any) -> None:
    """A replay takes the new values, and the new global scale."""
    x = normal((64, 2048), BF16, device)
    scale = torch.tensor([0.01], device=device)
    outputs = quantize_nvfp4(x, scale, swizzled=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        quantize_nvfp4(x, scale, swizzled=True, packed=outputs[0], scales=outputs[1])
    x.copy_(normal((64, 2048), BF16, device, seed=9))
    scale.fill_(0.02)
    graph.replay()
    torch.cuda.synchronize()
    wanted = nvfp4.quantize(x.cpu(), 0.02)
    assert torch.equal(outputs[0].cpu(), wanted.packed)
    assert torch.equal(
        outputs[1].cpu().view(torch.uint8), nvfp4.swizzle_128x4(wanted.block_scales.view(torch.uint8))
    )


def test_opcheck(device: Any, check_operator: Any) -> None:
    x = normal((4, 64), BF16, device)
    one = torch.ones(1, device=device)

    def zeros(*outputs: Any) -> tuple[Any, ...]:
        return tuple(torch.zeros_like(out) for out in outputs)

    outputs = zeros(*quantize_nvfp4(x, one))
    check_operator(torch.ops.gb10.quantize_nvfp4.default, (x, one, False, *outputs))
    wide = torch.cat((x, x), dim=-1)
    outputs = zeros(*outputs)
    check_operator(torch.ops.gb10.silu_mul_quantize_nvfp4.default, (wide, one, False, *outputs))
    offsets = torch.tensor([0, 4], dtype=torch.int32, device=device)
    tiles = torch.tensor([0, 128], dtype=torch.int32, device=device)
    outputs = zeros(*quantize_nvfp4_experts(x, one, offsets, tiles))
    check_operator(torch.ops.gb10.quantize_nvfp4_experts.default, (x, one, offsets, tiles, *outputs))


def test_mixed_devices_are_refused(device: Any) -> None:
    x = torch.ones(2, 32, dtype=BF16, device=device)
    with pytest.raises(RuntimeError, match="global_scale is not on a CUDA device"):
        quantize_nvfp4(x, torch.ones(1))
