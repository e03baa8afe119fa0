"""UE4M3: values, rounding, special numbers, errors."""

import math
from fractions import Fraction

import pytest
import torch
from exact_oracle import ue4m3_values

from gb10.nvfp4 import UE4M3_MAX, UE4M3_MIN_POSITIVE, ue4m3


def encode_one(x: float, dtype: torch.dtype = torch.float32) -> int:
    return int(ue4m3.encode(torch.tensor(x, dtype=dtype)))


def test_decode_gives_the_values_of_the_definition() -> None:
    decoded = ue4m3.decode(torch.arange(128, dtype=torch.uint8))
    assert [Fraction(value) for value in decoded[:-1].tolist()] == ue4m3_values()
    assert math.isnan(decoded[-1].item())
    assert decoded[1].item() == UE4M3_MIN_POSITIVE
    assert decoded[-2].item() == UE4M3_MAX


def test_encode_undoes_decode() -> None:
    codes = torch.arange(128, dtype=torch.uint8)
    assert torch.equal(ue4m3.encode(ue4m3.decode(codes)), codes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_special_numbers(dtype: torch.dtype) -> None:
    assert encode_one(0.0, dtype) == 0
    assert encode_one(-0.0, dtype) == 0
    assert encode_one(448.0, dtype) == 0x7E
    assert encode_one(480.0, dtype) == 0x7E
    assert encode_one(60000.0, dtype) == 0x7E
    assert encode_one(math.inf, dtype) == 0x7E
    assert encode_one(math.nan, dtype) == 0x7F
    assert encode_one(math.copysign(math.nan, -1), dtype) == 0x7F


@pytest.mark.parametrize("code", range(126))
def test_ties_go_to_the_even_code(code: int) -> None:
    values = ue4m3_values()
    middle = float((values[code] + values[code + 1]) / 2)
    assert encode_one(middle) == code + code % 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_all_half_precision_numbers_encode_as_float32_does(dtype: torch.dtype) -> None:
    x = torch.arange(2**15, dtype=torch.int16).view(dtype)
    assert torch.equal(ue4m3.encode(x), ue4m3.encode(x.to(torch.float32)))


def test_errors() -> None:
    with pytest.raises(ValueError, match="no sign"):
        ue4m3.encode(torch.tensor([1.0, -1e-30]))
    with pytest.raises(ValueError, match="no sign"):
        ue4m3.encode(torch.tensor(-math.inf))
    with pytest.raises(TypeError, match="float64"):
        ue4m3.encode(torch.tensor(1.0, dtype=torch.float64))
    with pytest.raises(ValueError, match="no sign"):
        ue4m3.decode(torch.tensor([0x80], dtype=torch.uint8))
    with pytest.raises(TypeError, match="uint8"):
        ue4m3.decode(torch.tensor([1]))
