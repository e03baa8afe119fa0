"""FP8 rows: rounding once, tiny rows, odd inputs."""

import math

import pytest
import torch

from gb10 import fp8


def test_encode_rounds_once() -> None:
    # 1.0625 lies in the middle of 1 and 1.125; the tie goes down, what is above it goes up.
    assert fp8.encode(torch.tensor([1.0625, 1.0625 + 2.0**-20])).float().tolist() == [1.0, 1.125]
    with pytest.raises(TypeError, match="rounded twice"):
        fp8.encode(torch.tensor([1.0625 + 2.0**-40], dtype=torch.float64))
    with pytest.raises(TypeError, match="rounded twice"):
        fp8.quantize_rows(torch.ones(1, 16, dtype=torch.float64))


def test_special_numbers() -> None:
    found = fp8.encode(torch.tensor([math.inf, -math.inf, 1e30, math.nan])).float()
    assert found[:3].tolist() == [448.0, -448.0, 448.0]
    assert math.isnan(found[3].item())
    wide = torch.tensor([57344.0, -1.75]).to(torch.float8_e5m2)
    assert fp8.encode(wide).float().tolist() == [448.0, -1.75]


@pytest.mark.parametrize("amax", [2.0**-149, 2.0**-127, 2.0**-118])
def test_rows_of_tiny_numbers_have_the_smallest_normal_scale(amax: float) -> None:
    """Not 1: the quotient underflows to zero, the numbers are not zero."""
    codes, scales = fp8.quantize_rows(torch.tensor([[amax] * 16, [0.0] * 16, [448.0] * 16]))
    assert scales.tolist() == [torch.finfo(torch.float32).tiny, 1.0, 1.0]
    assert fp8.dequantize(codes, scales)[1:, 0].tolist() == [0.0, 448.0]
