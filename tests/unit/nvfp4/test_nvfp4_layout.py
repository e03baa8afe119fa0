"""The 128x4 swizzled scale layout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gb10.nvfp4 import swizzle_128x4, unswizzle_128x4

ROWS = st.integers(1, 300)
COLUMNS = st.integers(1, 21)


def offset(row: int, column: int, columns: int) -> int:
    """Give the place of one scale, from the formula of the cuBLAS documentation."""
    tiles = (columns + 3) // 4
    tile = (row // 128) * tiles + column // 4
    return tile * 512 + (row % 32) * 16 + (row % 128) // 32 * 4 + column % 4


def random_bytes(*shape: int) -> torch.Tensor:
    return torch.randint(
        1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(sum(shape))
    )


@given(ROWS, COLUMNS)
@settings(max_examples=40, deadline=None)
def test_every_scale_is_where_the_formula_says(rows: int, columns: int) -> None:
    scales = random_bytes(rows, columns)
    flat = swizzle_128x4(scales).flatten()
    places = torch.tensor(
        [[offset(row, column, columns) for column in range(columns)] for row in range(rows)]
    )
    assert torch.equal(flat[places], scales)
    assert flat.numel() % 512 == 0
    assert int(flat.count_nonzero()) == scales.numel()


@given(st.lists(st.integers(1, 3), max_size=2), ROWS, COLUMNS)
@settings(deadline=None)
def test_unswizzle_undoes_swizzle(batch: list[int], rows: int, columns: int) -> None:
    scales = random_bytes(*batch, rows, columns)
    swizzled = swizzle_128x4(scales)
    assert swizzled.shape == (*batch, -(-rows // 128) * 128, -(-columns // 4) * 4)
    assert torch.equal(unswizzle_128x4(swizzled, rows, columns), scales)
    if not batch:
        assert torch.equal(unswizzle_128x4(swizzled.flatten(), rows, columns), scales)


def test_batches_are_swizzled_one_by_one() -> None:
    scales = random_bytes(3, 130, 5)
    assert torch.equal(swizzle_128x4(scales), torch.stack([swizzle_128x4(one) for one in scales]))


def test_float8_keeps_its_dtype_and_bits() -> None:
    scales = random_bytes(7, 9).view(torch.float8_e4m3fn)
    swizzled = swizzle_128x4(scales)
    assert swizzled.dtype == torch.float8_e4m3fn
    back = unswizzle_128x4(swizzled, 7, 9)
    assert torch.equal(back.view(torch.uint8), scales.view(torch.uint8))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (128, 4), (129, 5), (300, 16)])
def test_vllm_reads_the_same_layout(rows: int, columns: int) -> None:
    emulation = pytest.importorskip("vllm.model_executor.layers.quantization.utils.nvfp4_emulation_utils")
    scales = random_bytes(rows, columns)
    linear = emulation.convert_swizzled_to_linear(swizzle_128x4(scales), rows, columns * 16, 16)
    # It cuts the rows to size, and leaves the padding columns.
    assert torch.equal(linear[:, :columns], scales)
    assert not linear[:, columns:].any()


def test_errors() -> None:
    with pytest.raises(TypeError, match="one byte"):
        swizzle_128x4(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="rows and columns"):
        swizzle_128x4(torch.zeros(4, dtype=torch.uint8))
    with pytest.raises(TypeError, match="one byte"):
        unswizzle_128x4(torch.zeros(128, 4), 1, 1)
    for wrong in (torch.zeros(256, 4, dtype=torch.uint8), torch.zeros(511, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="or are flat"):
            unswizzle_128x4(wrong, 1, 1)
