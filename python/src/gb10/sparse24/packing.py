"""NVFP4 to 2 of 4 and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from gb10.errors import UserError
from gb10.nvfp4 import BLOCK_SIZE, NvFp4Tensor
from gb10.nvfp4 import pack as pack_codes
from gb10.nvfp4 import unpack as unpack_codes
from gb10.sparse24 import layout
from gb10.sparse24.layout import GROUP, TILE_COLUMNS, TILE_ROWS
from gb10.sparse24.report import Loss, measure

ENERGY_LIMIT = 0.01
"""The share of energy that `pack` drops without being told to."""

_PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
"""The position codes 0 to 5: which two of a group are kept."""


class TooLossyError(UserError):
    """Packing would drop more of a weight than its caller allowed."""

    def __init__(self, loss: Loss, limit: float) -> None:
        super().__init__(
            f"{loss.name}: keeping 2 of 4 drops {loss.share_of_energy_dropped:.2%} of the energy, "
            f"more than the limit of {limit:.2%}; "
            "raise energy_limit, or pass allow_loss=True, if the model may lose that much"
        )
        self.loss = loss
        self.limit = limit


@dataclass(frozen=True)
class Sparse24Weight:
    """A packed weight of logical shape `[N, K]`, or `[E, N, K]` with a leading dimension E on every tensor.

    With R = ceil(N / 16) and C = ceil(K / 256), 13 / 32 byte a value where N and K need no padding.
    """

    values: torch.Tensor
    """uint8 `[R, C, 1024]`: the kept E2M1 codes, two a byte, in the order of `gb10.sparse24.layout`."""

    positions: torch.Tensor
    """uint8 `[R, C, 384]`: 3 bits for each group of four."""

    scales: torch.Tensor
    """float8_e4m3fn `[R, C, 256]`: the block scales."""

    global_scale: torch.Tensor
    """float32, one number, or one (or more) per expert."""

    rows: int
    columns: int

    @property
    def bytes(self) -> int:
        """Memory of values, positions and scales."""
        return sum(part.numel() for part in (self.values, self.positions, self.scales))


def kept_positions(codes: torch.Tensor) -> torch.Tensor:
    """Which two of every four are kept: the two of largest magnitude, of equal ones the first.

    `codes` is uint8 `[..., K]`, 0 to 15, K a multiple of 4. Returns int64 `[..., K / 4, 2]`, increasing,
    0 to 3.
    """
    groups = codes.reshape(*codes.shape[:-1], -1, GROUP)
    order = torch.arange(GROUP - 1, -1, -1, dtype=torch.uint8, device=codes.device)
    rank = ((groups & 7) << 2) | order
    return rank.topk(layout.KEPT, dim=-1).indices.sort(dim=-1).values


def pack(
    weight: NvFp4Tensor, *, name: str = "weight", energy_limit: float = ENERGY_LIMIT, allow_loss: bool = False
) -> tuple[Sparse24Weight, Loss]:
    """Keep 2 of 4 of a weight `[N, K]` or `[E, N, K]`, K a multiple of 16, on its device; also say what
    was lost.

    `energy_limit` is the largest share of energy (sum of squares of the dequantised values) that may be
    dropped, 0 to 1; `allow_loss` lifts it.

    Raises TooLossyError beyond the limit, ValueError for other shapes.
    """
    if weight.packed.ndim not in (2, 3) or weight.packed.shape[-1] == 0:
        raise ValueError(f"2 of 4 packs [N, K] or [E, N, K], got packed codes {list(weight.packed.shape)}")
    loss = measure(weight, name)
    if not allow_loss and loss.share_of_energy_dropped > energy_limit:
        raise TooLossyError(loss, energy_limit)
    *_, rows, half = weight.packed.shape
    columns = 2 * half
    experts = weight.packed.reshape(-1, rows, half)
    scales = weight.block_scales.view(torch.uint8).reshape(-1, rows, columns // BLOCK_SIZE)
    tiles = [_pack_matrix(*parts) for parts in zip(experts, scales, strict=True)]
    if not tiles:
        raise ValueError("2 of 4 packs at least one expert, got none")
    values, positions, packed_scales = (torch.stack(parts) for parts in zip(*tiles, strict=True))
    if weight.packed.ndim == 2:
        values, positions, packed_scales = values[0], positions[0], packed_scales[0]
    fp8 = packed_scales.view(torch.float8_e4m3fn)
    return Sparse24Weight(values, positions, fp8, weight.global_scale, rows, columns), loss


def unpack(weight: Sparse24Weight) -> NvFp4Tensor:
    """Give the kept values as dense NVFP4 in its native layout, bit for bit; dropped ones have code 0."""
    matrices = [
        _unpack_matrix(values, positions, scales, weight.rows, weight.columns)
        for values, positions, scales in zip(
            weight.values.reshape(-1, *weight.values.shape[-3:]),
            weight.positions.reshape(-1, *weight.positions.shape[-3:]),
            weight.scales.view(torch.uint8).reshape(-1, *weight.scales.shape[-3:]),
            strict=True,
        )
    ]
    packed, scales = (torch.stack(parts) for parts in zip(*matrices, strict=True))
    if weight.values.ndim == 3:
        packed, scales = packed[0], scales[0]
    return NvFp4Tensor(packed, scales.view(torch.float8_e4m3fn), weight.global_scale)


def _pack_matrix(
    packed: torch.Tensor, scales: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, columns = packed.shape[0], packed.shape[1] * 2
    more_rows, more_columns = -rows % TILE_ROWS, -columns % TILE_COLUMNS
    codes = functional.pad(unpack_codes(packed), (0, more_columns, 0, more_rows))
    positions = kept_positions(codes)
    kept = codes.reshape(*positions.shape[:-1], GROUP).gather(-1, positions)
    code_of = torch.zeros(GROUP, GROUP, dtype=torch.uint8, device=packed.device)
    for code, (first, second) in enumerate(_PAIRS):
        code_of[first, second] = code
    return (
        layout.values_to_tiles(kept),
        layout.positions_to_tiles(code_of[positions[..., 0], positions[..., 1]]),
        layout.scales_to_tiles(functional.pad(scales, (0, more_columns // BLOCK_SIZE, 0, more_rows))),
    )


def _unpack_matrix(
    values: torch.Tensor, positions: torch.Tensor, scales: torch.Tensor, rows: int, columns: int
) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = torch.tensor(_PAIRS, device=values.device)[layout.positions_from_tiles(positions).to(torch.int64)]
    kept = layout.values_from_tiles(values)
    groups = torch.zeros(*kept.shape[:-1], GROUP, dtype=torch.uint8, device=values.device)
    codes = groups.scatter_(-1, pairs, kept).flatten(-2)[:rows, :columns]
    return pack_codes(codes), layout.scales_from_tiles(scales)[:rows, : columns // BLOCK_SIZE].contiguous()
