"""Fused parts with global scales of their own: one scale where that changes no value, else untouched."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gb10.nvfp4 import dequantize
from gb10.nvfp4.fused import power_of_two, share_scale

ROWS = (6, 2, 4)
BLOCKS = 3


def stored(seed: int, lowest: int, highest: int, count: int = 2, rows: Sequence[int] = ROWS) -> torch.Tensor:
    """Block scales out of a range of bytes, float8_e4m3fn `[count, sum(rows), BLOCKS]`."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, sum(rows), BLOCKS)
    found = torch.randint(lowest, highest + 1, shape, dtype=torch.uint8, generator=generator)
    return found.view(torch.float8_e4m3fn)


def values(block_scales: torch.Tensor, scales: torch.Tensor, rows: Sequence[int] = ROWS) -> torch.Tensor:
    """Every value that codes can have with these scales, each part with its own."""
    count, total, blocks = block_scales.shape
    codes = torch.arange(8, dtype=torch.uint8).repeat(count, total, blocks).mul_(17)
    per_row = scales.repeat_interleave(torch.tensor(rows), dim=1)
    return dequantize(codes, block_scales, per_row)


def bits(x: torch.Tensor) -> list[int]:
    return x.view(torch.int32).flatten().tolist()


@given(st.integers(0, 2**31), st.lists(st.integers(-3, 3), min_size=3, max_size=3), st.floats(1e-6, 1e-2))
@settings(deadline=None)
def test_powers_of_two_go_into_the_block_scales(seed: int, shifts: list[int], scale: float) -> None:
    # Bytes 0x40 to 0x48 are 2 to 4: room for six powers of two below, and above.
    block_scales = stored(seed, 0x40, 0x48)
    own = torch.ldexp(torch.full((2, 3), scale), torch.tensor(shifts))
    before = values(block_scales, own)
    scales = own.clone()
    assert share_scale(block_scales, scales, ROWS).tolist() == [True, True]
    assert bool((scales == scales[:, :1]).all())
    assert bits(values(block_scales, scales)) == bits(before)


@given(st.integers(0, 2**31), st.lists(st.floats(1e-6, 1e-2), min_size=6, max_size=6))
@settings(deadline=None)
def test_no_value_ever_changes(seed: int, own: list[float]) -> None:
    """Whatever the scales are, and over the whole range of block scales."""
    block_scales = stored(seed, 0, 0x7E)
    scales = torch.tensor(own).view(2, 3)
    before_scales, before_blocks = scales.clone(), block_scales.clone()
    before = values(block_scales, scales)
    shared = share_scale(block_scales, scales, ROWS)
    assert bits(values(block_scales, scales)) == bits(before)
    for index in range(2):
        if shared[index]:
            assert len(set(scales[index].tolist())) == 1
        else:
            assert torch.equal(scales[index], before_scales[index])
            assert torch.equal(block_scales[index].view(torch.uint8), before_blocks[index].view(torch.uint8))


def test_one_scale_stays_as_it_is() -> None:
    block_scales = stored(0, 0, 0x7E)
    before = block_scales.clone()
    scales = torch.tensor([[0.01] * 3, [0.02] * 3])
    assert share_scale(block_scales, scales, ROWS).tolist() == [True, True]
    assert scales.tolist() == torch.tensor([[0.01] * 3, [0.02] * 3]).tolist()
    assert torch.equal(block_scales.view(torch.uint8), before.view(torch.uint8))


def test_the_scale_is_chosen_so_that_nothing_overflows_and_little_is_lost() -> None:
    """448 in the part with the smaller scale, 1 in the other: the smaller scale has room for both."""
    block_scales = torch.tensor([[[448.0]], [[1.0]]]).to(torch.float8_e4m3fn).view(1, 2, 1)
    scales = torch.tensor([[0.5, 4.0]])
    assert share_scale(block_scales, scales, (1, 1)).item()
    assert scales.tolist() == [[0.5, 0.5]]
    assert block_scales.float().flatten().tolist() == [448.0, 8.0]


@pytest.mark.parametrize(
    ("blocks", "own"),
    [
        # 1.125 is nine eighths; half of it below 2^-6 has no bit for that.
        ((448.0, 1.125 * 2**-6), (1.0, 0.5)),
        ((448.0, 2.0**-9), (1.0, 0.5)),
        ((448.0, 448.0), (1.0, 1.1)),
        ((448.0, 1.125), (1.0, 1.5)),
        ((1.0, float("nan")), (1.0, 2.0)),
    ],
)
def test_what_would_be_rounded_stays(blocks: tuple[float, float], own: tuple[float, float]) -> None:
    block_scales = torch.tensor(blocks).to(torch.float8_e4m3fn).view(1, 2, 1)
    scales = torch.tensor([own])
    before = block_scales.clone().view(torch.uint8)
    assert not share_scale(block_scales, scales, (1, 1)).item()
    assert scales.tolist() == torch.tensor([own]).tolist()
    assert torch.equal(block_scales.view(torch.uint8), before)


def test_other_ratios_where_they_fit() -> None:
    """One and a half times 8 eighths is 12 eighths: an E4M3 number."""
    block_scales = torch.tensor([448.0, 2.0]).to(torch.float8_e4m3fn).view(1, 2, 1)
    scales = torch.tensor([[0.25, 0.375]])
    assert share_scale(block_scales, scales, (1, 1)).item()
    assert scales.tolist() == [[0.25, 0.25]]
    assert block_scales.float().flatten().tolist() == [448.0, 3.0]


def test_many_tensors_in_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    from gb10.nvfp4 import fused

    monkeypatch.setattr(fused, "_AT_ONCE", 2 * sum(ROWS) * BLOCKS)
    block_scales = stored(5, 0x40, 0x48, count=7)
    scales = torch.full((7, 3), 1e-3)
    scales[::2, 1] *= 2
    scales[3, 2] *= 1.3
    before = values(block_scales, scales)
    assert share_scale(block_scales, scales, ROWS).tolist() == [True, True, True, False, True, True, True]
    assert bits(values(block_scales, scales)) == bits(before)


def test_errors() -> None:
    block_scales = stored(0, 0x40, 0x48)
    with pytest.raises(TypeError, match="float8_e4m3fn"):
        share_scale(block_scales.view(torch.uint8), torch.ones(2, 3), ROWS)
    with pytest.raises(TypeError, match="float32"):
        share_scale(block_scales, torch.ones(2, 3, dtype=torch.bfloat16), ROWS)
    for scales, rows in ((torch.ones(2, 3), (6, 2, 5)), (torch.ones(2, 2), ROWS), (torch.ones(3, 3), ROWS)):
        with pytest.raises(ValueError, match="do not fit"):
            share_scale(block_scales, scales, rows)


def test_powers_of_two() -> None:
    scales = torch.tensor([1.0, 1.5, 0.3, 2.0**-100, 1e-3])
    assert power_of_two(scales).tolist() == [1.0, 2.0, 0.5, 2.0**-100, 2.0**-9]
    assert float(power_of_two(torch.tensor(3.0))) == 4.0
