"""Where the block scales lie in memory.

Linear layout: `[rows, columns]`, row-major, one column per block of 16 values. Checkpoints use it.

Swizzled scale layout (128x4): what the block-scaled matrix instructions read. The matrix is padded with
zeros to a multiple of 128 rows and 4 columns and cut into tiles of 128 x 4, each 512 bytes without gaps.
The tiles follow each other along a row of tiles first. With `tiles = ceil(columns / 4)`, the scale of row r
and column c is at

    offset(r, c) = ((r // 128) * tiles + c // 4) * 512 + (r % 32) * 16 + (r % 128 // 32) * 4 + c % 4

Source: the cuBLAS documentation, section "1D Block Scaling Factors Layout". CUTLASS has the same layout in
`cutlass::detail::Sm1xxBlockScaledConfig`; its atom has shape ((32, 4), (16, 4)), strides ((16, 4), (0, 1)).
"""

import torch

TILE_ROWS = 128
TILE_COLUMNS = 4
_GROUPS = 4
_GROUP_ROWS = TILE_ROWS // _GROUPS


def padded_shape(rows: int, columns: int) -> tuple[int, int]:
    """Round `rows` up to a multiple of 128 and `columns` up to a multiple of 4."""
    return -(-rows // TILE_ROWS) * TILE_ROWS, -(-columns // TILE_COLUMNS) * TILE_COLUMNS


def swizzle_128x4(scales: torch.Tensor) -> torch.Tensor:
    """Bring linear scales `[..., rows, columns]` into the swizzled scale layout.

    Any one-byte dtype (uint8 or float8_e4m3fn). Returns a contiguous tensor of the same dtype and of shape
    `[..., padded rows, padded columns]`; only the order of its memory has a meaning. The padding is zero.

    Raises TypeError when an element is not one byte, ValueError when there are fewer than two dimensions.
    """
    _check_one_byte(scales)
    if scales.ndim < 2:
        raise ValueError(f"block scales need rows and columns, got shape {list(scales.shape)}")
    *batch, rows, columns = scales.shape
    padded_rows, padded_columns = padded_shape(rows, columns)
    padded = torch.zeros((*batch, padded_rows, padded_columns), dtype=torch.uint8, device=scales.device)
    padded[..., :rows, :columns] = scales.view(torch.uint8)
    # From (row tile, group, row in group, column tile, column)
    # to   (row tile, column tile, row in group, group, column).
    tiles = padded.reshape(
        -1, padded_rows // TILE_ROWS, _GROUPS, _GROUP_ROWS, padded_columns // TILE_COLUMNS, TILE_COLUMNS
    )
    return tiles.permute(0, 1, 4, 3, 2, 5).reshape(padded.shape).view(scales.dtype)


def unswizzle_128x4(swizzled: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Bring swizzled scales back to linear ones and cut the padding off.

    `swizzled` is what `swizzle_128x4` gave, or the same memory as a flat tensor; leading batch dimensions are
    allowed in the padded form only. Returns a contiguous tensor `[..., rows, columns]` of the same dtype.

    Raises TypeError when an element is not one byte, ValueError when the size does not fit `rows` and
    `columns`.
    """
    _check_one_byte(swizzled)
    padded_rows, padded_columns = padded_shape(rows, columns)
    batch = swizzled.shape[:-2]
    padded = (padded_rows, padded_columns)
    if tuple(swizzled.shape[-2:]) != padded and tuple(swizzled.shape) != (padded_rows * padded_columns,):
        raise ValueError(
            f"swizzled scales of {rows} rows and {columns} columns have the shape {list(padded)} "
            f"or are flat, got shape {list(swizzled.shape)}"
        )
    tiles = swizzled.view(torch.uint8).reshape(
        -1, padded_rows // TILE_ROWS, padded_columns // TILE_COLUMNS, _GROUP_ROWS, _GROUPS, TILE_COLUMNS
    )
    linear = tiles.permute(0, 1, 4, 3, 2, 5).reshape(*batch, *padded)
    return linear[..., :rows, :columns].contiguous().view(swizzled.dtype)


def _check_one_byte(scales: torch.Tensor) -> None:
    if scales.element_size() != 1:
        raise TypeError(f"block scales have one byte each, got {scales.dtype}")
