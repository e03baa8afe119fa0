"""The order of the packed form in memory: that of the kernels' sparse matrix instruction.

The weight is padded with zeros to 16 rows and 256 columns and cut into tiles of that size. What each byte
of a tile holds is written at the top of `kernels/sparse24/sparse24.cuh`; here the same is done with
reshapes. The names of dimensions are those of that comment: a row is (h, g), row 8 h + g of a tile; a
column is (t, j, b) and its place in a group of four, with group 16 t + 2 j + b of a tile.
"""

import torch

TILE_ROWS = 16
TILE_COLUMNS = 256
GROUP = 4
KEPT = 2

VALUE_BYTES = 1024
SCALE_BYTES = 256

_WORDS = 4
"""Words of positions of a lane; the last one lies in the spare bits of the others."""


def values_to_tiles(codes: torch.Tensor) -> torch.Tensor:
    """Bring kept codes, uint8 `[N, K / 4, 2]` with N and K padded, into bytes `[N / 16, K / 256, 1024]`."""
    rows, groups, _ = codes.shape
    parts = codes.reshape(rows // 16, 2, 8, groups // 64, 4, 2, 4, 2, KEPT)  # R h g C t j' j'' b kept
    pairs = parts.permute(0, 3, 5, 2, 4, 6, 8, 7, 1).reshape(rows // 16, groups // 64, VALUE_BYTES, 2)
    upper, lower = pairs[..., 0], pairs[..., 1]  # R C (j' g t j'' kept b); h is 0 in upper, 1 in lower
    return (upper >> 3 << 7) | ((upper & 7) << 1) | (lower >> 3) | ((lower & 7) << 4)


def values_from_tiles(tiles: torch.Tensor) -> torch.Tensor:
    """Undo `values_to_tiles`."""
    row_tiles, column_tiles, _ = tiles.shape
    upper = (tiles >> 7 << 3) | (tiles >> 1 & 7)
    lower = ((tiles & 1) << 3) | (tiles >> 4 & 7)
    parts = torch.stack((upper, lower), dim=-1).reshape(row_tiles, column_tiles, 2, 8, 4, 4, KEPT, 2, 2)
    parts = parts.permute(0, 8, 3, 1, 4, 2, 5, 7, 6)
    return parts.reshape(row_tiles * TILE_ROWS, column_tiles * 64, KEPT)


def positions_to_tiles(codes: torch.Tensor) -> torch.Tensor:
    """Bring position codes 0 to 5, uint8 `[N, K / 4]` padded, into bytes `[N / 16, K / 256, 384]`."""
    rows, groups = codes.shape
    parts = codes.reshape(rows // 16, 2, 8, groups // 64, 2, 2, 4, 2, 2)  # R h g C n' n'' word t' b
    slots = parts.permute(0, 3, 6, 2, 7, 8, 5, 1, 4)  # R C word g t' t'' n'' h n'
    words = slots.reshape(rows // 16, groups // 64, _WORDS, 32, 8)
    last = words[:, :, -1]
    stored = torch.stack([words[:, :, i] | ((last >> i & 1) << 3) for i in range(_WORDS - 1)], dim=2)
    data = stored[..., 0::2] | (stored[..., 1::2] << 4)  # R C word lane byte
    first = data[:, :, :2].transpose(2, 3).flatten(2)
    return torch.cat((first, data[:, :, 2].flatten(2)), dim=2)


def positions_from_tiles(tiles: torch.Tensor) -> torch.Tensor:
    """Undo `positions_to_tiles`."""
    row_tiles, column_tiles, _ = tiles.shape
    first = tiles[..., :256].reshape(row_tiles, column_tiles, 32, 2, 4).transpose(2, 3)
    data = torch.cat((first, tiles[..., 256:].reshape(row_tiles, column_tiles, 1, 32, 4)), dim=2)
    stored = torch.stack((data & 0xF, data >> 4), dim=-1).flatten(-2)
    last = (stored[:, :, 0] >> 3) | (stored[:, :, 1] >> 3 << 1) | (stored[:, :, 2] >> 3 << 2)
    words = torch.cat((stored & 7, last.unsqueeze(2)), dim=2)
    slots = words.reshape(row_tiles, column_tiles, _WORDS, 8, 2, 2, 2, 2, 2)  # R C word g t' t'' n'' h n'
    parts = slots.permute(0, 7, 3, 1, 8, 6, 2, 4, 5)  # R h g C n' n'' word t' b
    return parts.reshape(row_tiles * TILE_ROWS, column_tiles * 64)


def scales_to_tiles(scales: torch.Tensor) -> torch.Tensor:
    """Bring bytes of block scales, uint8 `[N, K / 16]` padded, into `[N / 16, K / 256, 256]`."""
    rows, blocks = scales.shape
    parts = scales.reshape(rows // 16, 2, 8, blocks // 16, 4, 4)  # R h g C t block
    return parts.permute(0, 3, 2, 4, 1, 5).reshape(rows // 16, blocks // 16, SCALE_BYTES)


def scales_from_tiles(tiles: torch.Tensor) -> torch.Tensor:
    """Undo `scales_to_tiles`."""
    row_tiles, column_tiles, _ = tiles.shape
    parts = tiles.reshape(row_tiles, column_tiles, 8, 4, 2, 4).permute(0, 4, 2, 1, 3, 5)
    return parts.reshape(row_tiles * TILE_ROWS, column_tiles * 16)
