"""Quantise and dequantise: error bounds, conventions, agreement with vLLM, errors."""

import math
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gb10.nvfp4 import (
    BLOCK_SIZE,
    E2M1_MAX,
    UE4M3_MAX,
    UE4M3_MIN_POSITIVE,
    dequantize,
    e2m1,
    fake_quantize_activations,
    global_scale_for,
    quantize,
    unpack,
)

SEEDS = st.integers(0, 2**31)
SCALES = st.floats(-20, 20).map(lambda exponent: 2.0**exponent)
GRID = torch.tensor([*e2m1.VALUES, *(-value for value in e2m1.VALUES)])


@pytest.fixture(scope="module")
def emulation() -> ModuleType:
    """vLLM's own reference arithmetic."""
    module: ModuleType = pytest.importorskip(
        "vllm.model_executor.layers.quantization.utils.nvfp4_emulation_utils"
    )
    return module


def weights(seed: int, scale: float, *shape: int) -> torch.Tensor:
    """Random numbers whose blocks differ much in size, with some zeros and a zero block."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=generator) * scale
    w *= torch.exp2(torch.randint(-6, 1, (*shape[:-1], 1), generator=generator))
    w[torch.rand(shape, generator=generator) < 0.1] = 0
    w.view(-1, BLOCK_SIZE)[0] = 0
    return w


def in_blocks(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(*x.shape[:-1], -1, BLOCK_SIZE)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view({2: torch.int16, 4: torch.int32}[x.element_size()])


@given(SEEDS, SCALES)
@settings(deadline=None)
def test_each_value_is_the_nearest_one_its_block_scale_allows(seed: int, scale: float) -> None:
    w = weights(seed, scale, 6, 48)
    stored = quantize(w)
    steps = (stored.block_scales.float() * stored.global_scale).double().repeat_interleave(BLOCK_SIZE, dim=-1)
    distance = (dequantize(*stored).double() - w).abs()
    nearest = (GRID.double() * steps.unsqueeze(-1) - w.unsqueeze(-1)).abs().amin(-1)
    assert bool((distance <= nearest + steps * 1e-5).all())


@given(SEEDS, SCALES)
@settings(deadline=None)
def test_block_scales_are_the_nearest_ones_and_errors_are_bounded(seed: int, scale: float) -> None:
    w = weights(seed, scale, 6, 48)
    stored = quantize(w)
    assert stored.global_scale.item() == pytest.approx(w.abs().max().item() / (6 * 448), rel=1e-6)
    amax = in_blocks(w.abs()).amax(-1).double()
    wanted = amax / (E2M1_MAX * stored.global_scale.double())
    block_scales = stored.block_scales.double()
    # Half a unit in the last place: 2^-4 of the number, or half the subnormal step; never below the smallest.
    slack = torch.maximum(wanted * 2**-4, torch.tensor(UE4M3_MIN_POSITIVE / 2)) + 1e-6
    assert bool(((block_scales - wanted).abs() <= slack)[wanted >= UE4M3_MIN_POSITIVE].all())
    assert bool((block_scales[wanted < UE4M3_MIN_POSITIVE] == UE4M3_MIN_POSITIVE).all())
    # The widest gap is 4 to 6, so rounding costs at most one step; what lies beyond 6 steps is cut off.
    steps = block_scales * stored.global_scale.double()
    bound = torch.maximum(steps, amax - E2M1_MAX * steps) * (1 + 1e-5)
    error = in_blocks((dequantize(*stored).double() - w).abs()).amax(-1)
    assert bool((error <= bound).all())


@given(SEEDS, SCALES)
@settings(deadline=None)
def test_quantising_again_changes_nothing(seed: int, scale: float) -> None:
    w = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)) * scale
    stored = quantize(w)
    again = quantize(dequantize(*stored), stored.global_scale)
    assert torch.equal(again.packed, stored.packed)
    assert torch.equal(again.block_scales.view(torch.uint8), stored.block_scales.view(torch.uint8))


def test_numbers_that_nvfp4_can_hold_come_back_exactly() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(3, 1)
    w = e2m1.decode(codes) * torch.tensor([[448.0], [1.0], [2.0**-9]])
    stored = quantize(w, 1.0)
    assert torch.equal(unpack(stored.packed), codes)
    assert stored.block_scales.float().flatten().tolist() == [448.0, 1.0, 2.0**-9]
    assert torch.equal(bits(dequantize(*stored)), bits(w))


def test_shapes_and_dtypes() -> None:
    stored = quantize(torch.randn(2, 3, 5, 32, dtype=torch.bfloat16))
    assert (stored.packed.shape, stored.packed.dtype) == ((2, 3, 5, 16), torch.uint8)
    assert (stored.block_scales.shape, stored.block_scales.dtype) == ((2, 3, 5, 2), torch.float8_e4m3fn)
    assert (stored.global_scale.shape, stored.global_scale.dtype) == ((), torch.float32)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert dequantize(*stored, dtype).dtype == dtype
    assert torch.equal(dequantize(*stored, torch.bfloat16), dequantize(*stored).to(torch.bfloat16))
    as_bytes = stored.block_scales.view(torch.uint8)
    assert torch.equal(dequantize(stored.packed, as_bytes, stored.global_scale), dequantize(*stored))
    assert dequantize(*quantize(torch.zeros(0, 32))).shape == (0, 32)


def test_one_global_scale_per_expert() -> None:
    w = torch.randn(3, 4, 32) * torch.tensor([1.0, 100.0, 0.01])[:, None, None]
    scales = global_scale_for(w.abs().amax((1, 2)))
    stored = quantize(w, scales)
    for expert in range(3):
        alone = quantize(w[expert], scales[expert])
        assert torch.equal(stored.packed[expert], alone.packed)
        assert torch.equal(dequantize(*stored)[expert], dequantize(*alone))


def test_zero_weights_stay_zero() -> None:
    stored = quantize(torch.zeros(2, 32))
    assert stored.global_scale.item() == 1.0
    assert torch.equal(dequantize(*stored), torch.zeros(2, 32))


def test_tiny_and_huge_weights() -> None:
    smallest = torch.full((1, 16), 2.0**-149)
    assert bool(dequantize(*quantize(smallest)).isfinite().all())
    largest = torch.full((1, 16), torch.finfo(torch.float32).max)
    assert torch.allclose(dequantize(*quantize(largest)), largest)


@pytest.mark.parametrize("amax", [2.0**-149, 2.0**-140, 2.0**-127, 2.0**-126, 2.0**-115])
def test_the_global_scale_of_tiny_numbers_is_the_smallest_normal_one(amax: float) -> None:
    """Not 1: the quotient underflows to zero, the numbers are not zero."""
    tiny = torch.finfo(torch.float32).tiny
    assert global_scale_for(amax).item() == tiny
    mixed = global_scale_for(torch.tensor([amax, 0.0, 2688.0, 2688 * tiny * 2]))
    assert mixed.tolist() == [tiny, 1.0, 1.0, 2 * tiny]
    assert quantize(torch.full((1, 16), amax)).global_scale.item() == tiny


@pytest.mark.parametrize("amax", [-1.0, math.nan, math.inf, 1e39])
def test_no_global_scale_for_what_is_no_magnitude(amax: float) -> None:
    with pytest.raises(ValueError, match="finite number that is not negative"):
        global_scale_for(amax)


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
)
def test_float8_weights_are_quantised_as_the_numbers_that_they_are(dtype: torch.dtype) -> None:
    x = weights(3, 1.0, 6, 48).to(dtype)
    narrow, wide = quantize(x), quantize(x.to(torch.float32))
    assert torch.equal(narrow.packed, wide.packed)
    assert torch.equal(dequantize(*narrow), dequantize(*wide))
    assert torch.equal(e2m1.encode(x), e2m1.encode(x.to(torch.float32)))


def test_float8_results_and_double_rounding_are_refused() -> None:
    # 0.25 is a tie, to even; a little above it is not, and float32 cannot hold the difference.
    above = torch.full((1, 16), 0.25 + 2.0**-40, dtype=torch.float64)
    assert int(e2m1.encode(above)[0, 0]) == 1
    assert int(e2m1.encode(above.float())[0, 0]) == 0
    with pytest.raises(TypeError, match="rounded twice"):
        quantize(above, 1.0)
    with pytest.raises(TypeError, match="rounded twice"):
        fake_quantize_activations(above, 1.0)
    with pytest.raises(TypeError, match="float32, bfloat16 or float16"):
        fake_quantize_activations(above.to(torch.float8_e4m3fn), 1.0)
    stored = quantize(torch.full((1, 16), 2688.0))
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int32):
        with pytest.raises(TypeError, match="16 bits or more"):
            dequantize(*stored, dtype)


@pytest.mark.parametrize("byte", [0x81, 0xB8, 0xFE, 0xFF])
def test_negative_block_scales_are_refused(byte: int) -> None:
    stored = quantize(torch.ones(2, 32))
    stored.block_scales.view(torch.uint8)[1, 1] = byte
    for block_scales in (stored.block_scales, stored.block_scales.view(torch.uint8)):
        with pytest.raises(ValueError, match="no sign"):
            dequantize(stored.packed, block_scales, stored.global_scale)


def test_a_block_scale_of_minus_zero_is_zero() -> None:
    stored = quantize(torch.ones(1, 32))
    stored.block_scales.view(torch.uint8)[0, 1] = 0x80
    assert dequantize(*stored)[0].tolist() == pytest.approx([1.0] * 16 + [0.0] * 16)


def test_a_nan_block_scale_makes_its_block_nan() -> None:
    stored = quantize(torch.ones(1, 32))
    stored.block_scales.view(torch.uint8)[0, 1] = 0x7F
    values = dequantize(*stored)
    assert bool(values[0, :16].isfinite().all())
    assert bool(values[0, 16:].isnan().all())


def test_a_small_block_beside_a_large_one_is_not_lost() -> None:
    w = torch.zeros(1, 32)
    w[0, 0], w[0, 16] = 6 * 448, 6 * 2.0**-10
    assert dequantize(*quantize(w, 1.0))[0, 16].item() == pytest.approx(6 * 2.0**-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(8))
def test_dequantize_has_the_bits_of_vllm(emulation: ModuleType, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randint(0, 256, (3, 40, 64), dtype=torch.uint8, generator=generator)
    block_scales = torch.randint(0, 127, (3, 40, 8), dtype=torch.uint8, generator=generator).view(
        torch.float8_e4m3fn
    )
    scales = torch.rand(3, generator=generator) * 1e-3 + 1e-6
    wanted = emulation.dequantize_to_dtype(packed, block_scales, scales, dtype, swizzle=False)
    assert torch.equal(bits(dequantize(packed, block_scales, scales, dtype)), bits(wanted))
    one = emulation.dequantize_to_dtype(packed[0], block_scales[0], scales[0], dtype, swizzle=False)
    assert torch.equal(bits(dequantize(packed[0], block_scales[0], scales[0], dtype)), bits(one))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("input_scale", [1.0, 3e-3, 8 / 2688, 1e-5, 0.0123])
def test_fake_quantised_activations_equal_those_of_vllm(
    emulation: ModuleType, dtype: torch.dtype, input_scale: float
) -> None:
    x = weights(7, 2.0, 300, 256).to(dtype)
    scale = torch.tensor(input_scale)
    wanted = emulation.ref_nvfp4_quant_dequant(x, 1 / scale, BLOCK_SIZE)
    got = fake_quantize_activations(x, scale)
    assert got.dtype == dtype
    assert torch.equal(got, wanted)
    assert torch.equal(
        fake_quantize_activations(x.reshape(3, 100, 256), input_scale).reshape(300, 256), wanted
    )


def test_fake_quantised_activations_are_close_and_clip_at_the_calibrated_amax() -> None:
    x = torch.randn(64, 128)
    amax = x.abs().max()
    got = fake_quantize_activations(x, amax / (E2M1_MAX * UE4M3_MAX))
    assert float((got - x).norm() / x.norm()) < 0.12
    clipped = fake_quantize_activations(x * 10, amax / (E2M1_MAX * UE4M3_MAX))
    assert clipped.abs().max().item() == pytest.approx(amax.item(), rel=1e-5)


def test_fake_quantised_special_blocks() -> None:
    x = torch.ones(1, 48)
    x[0, 20], x[0, 32:] = math.nan, 0
    got = fake_quantize_activations(x, 1 / 448)
    assert bool(got[0, :16].isfinite().all())
    assert bool(got[0, 16:32].isnan().all())
    assert got[0, 32:].tolist() == [0.0] * 16
    assert fake_quantize_activations(torch.full((1, 16), 1e-9), 1.0).tolist() == [[0.0] * 16]


def test_quantize_errors() -> None:
    with pytest.raises(TypeError, match="floating point"):
        quantize(torch.ones(16, dtype=torch.int32))
    for shape in ((), (0,), (2, 8), (2, 17)):
        with pytest.raises(ValueError, match="multiple of 16"):
            quantize(torch.ones(shape))
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            quantize(torch.full((16,), bad))
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive"):
            quantize(torch.ones(16), scale)
    for scales in (torch.ones(2, 16), torch.ones(3)):
        with pytest.raises(ValueError, match="does not fit"):
            quantize(torch.ones(2, 16), scales)
    for input_scale in (torch.ones(2), -1.0, 0.0):
        with pytest.raises(ValueError, match="one positive"):
            fake_quantize_activations(torch.ones(2, 16), input_scale)


def test_dequantize_errors() -> None:
    stored = quantize(torch.ones(2, 32))
    with pytest.raises(TypeError, match="uint8"):
        dequantize(stored.packed.int(), stored.block_scales, 1.0)
    with pytest.raises(TypeError, match="float8_e4m3fn"):
        dequantize(stored.packed, stored.block_scales.float(), 1.0)
    for packed in (stored.packed[:1], stored.packed[:, :8], stored.packed[:, :15], stored.packed[0]):
        with pytest.raises(ValueError, match="do not fit"):
            dequantize(packed, stored.block_scales, 1.0)
    with pytest.raises(ValueError, match="does not fit"):
        dequantize(stored.packed, stored.block_scales, torch.ones(3))
