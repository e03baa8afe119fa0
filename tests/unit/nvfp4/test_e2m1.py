"""E2M1: values, rounding, special numbers, dtypes, errors."""

import math
from fractions import Fraction

import pytest
import torch
from exact_oracle import e2m1_values

from gb10.nvfp4 import e2m1


def encode_one(x: float, dtype: torch.dtype = torch.float32) -> int:
    return int(e2m1.encode(torch.tensor(x, dtype=dtype)))


def test_decode_gives_the_sixteen_values() -> None:
    decoded = e2m1.decode(torch.arange(16, dtype=torch.uint8))
    assert decoded.dtype == torch.float32
    assert decoded.tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]
    assert math.copysign(1, decoded[8].item()) == -1
    assert [Fraction(value) for value in decoded[:8].tolist()] == e2m1_values()


def test_encode_undoes_decode() -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    assert torch.equal(e2m1.encode(e2m1.decode(codes)), codes)


@pytest.mark.parametrize(
    ("middle", "code"), [(0.25, 0), (0.75, 2), (1.25, 2), (1.75, 4), (2.5, 4), (3.5, 6), (5.0, 6)]
)
def test_ties_go_to_the_even_code_and_neighbours_do_not(middle: float, code: int) -> None:
    lower = {0.25: 0, 0.75: 1, 1.25: 2, 1.75: 3, 2.5: 4, 3.5: 5, 5.0: 6}[middle]
    for sign, bit in ((1, 0), (-1, 8)):
        x = torch.tensor(sign * middle)
        assert int(e2m1.encode(x)) == code | bit
        assert int(e2m1.encode(torch.nextafter(x, torch.tensor(0.0)))) == lower | bit
        assert int(e2m1.encode(torch.nextafter(x, torch.tensor(sign * math.inf)))) == (lower + 1) | bit


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_special_numbers(dtype: torch.dtype) -> None:
    assert encode_one(0.0, dtype) == 0x0
    assert encode_one(-0.0, dtype) == 0x8
    assert encode_one(-0.125, dtype) == 0x8
    assert encode_one(math.inf, dtype) == 0x7
    assert encode_one(-math.inf, dtype) == 0xF
    assert encode_one(7.0, dtype) == 0x7
    assert encode_one(-60000.0, dtype) == 0xF
    assert encode_one(math.nan, dtype) == 0x7
    assert encode_one(math.copysign(math.nan, -1), dtype) == 0x7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_all_half_precision_numbers_encode_as_float32_does(dtype: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    assert torch.equal(e2m1.encode(x), e2m1.encode(x.to(torch.float32)))


def test_float64_is_not_rounded_to_float32_first() -> None:
    just_above = math.nextafter(0.25, 1)
    assert encode_one(just_above, torch.float64) == 0x1
    assert encode_one(just_above, torch.float32) == 0x0


def test_shape_is_kept() -> None:
    for shape in ((), (0,), (3,), (2, 0, 5), (2, 3, 4)):
        codes = e2m1.encode(torch.ones(shape))
        assert codes.shape == shape
        assert codes.dtype == torch.uint8
        assert e2m1.decode(codes).shape == shape


def test_encode_leaves_its_input_alone() -> None:
    x = torch.tensor([1.3, -0.0, math.nan])
    kept = x.clone()
    e2m1.encode(x)
    assert torch.equal(x.view(torch.int32), kept.view(torch.int32))


def test_errors() -> None:
    with pytest.raises(TypeError, match="floating point"):
        e2m1.encode(torch.tensor([1]))
    with pytest.raises(TypeError, match="uint8"):
        e2m1.decode(torch.tensor([1]))
    with pytest.raises(ValueError, match="got 16"):
        e2m1.decode(torch.tensor([3, 16], dtype=torch.uint8))
