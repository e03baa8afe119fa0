"""What keeping 2 of 4 drops of a weight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from gb10.nvfp4 import BLOCK_SIZE, NvFp4Tensor, e2m1, unpack
from gb10.sparse24.layout import GROUP, KEPT

_ROWS_AT_ONCE = 4096
_HEADINGS = ("weight", "values", "<= 2 of 4", "dropped", "energy lost")


@dataclass(frozen=True)
class Loss:
    """Counts of one weight, or of several together.

    Energy is the sum of squares of the dequantised values.
    """

    name: str
    groups_by_nonzeros: tuple[int, int, int, int, int]
    """How many groups of four consecutive values of a row have 0, 1, 2, 3 and 4 non-zeros."""
    energy: float
    energy_dropped: float

    @property
    def groups(self) -> int:
        """All groups of four."""
        return sum(self.groups_by_nonzeros)

    @property
    def nonzeros(self) -> int:
        """All values that are not zero."""
        return sum(count * groups for count, groups in enumerate(self.groups_by_nonzeros))

    @property
    def dropped(self) -> int:
        """Non-zeros beyond the second of their group."""
        return sum(max(0, count - KEPT) * groups for count, groups in enumerate(self.groups_by_nonzeros))

    @property
    def share_of_fitting_groups(self) -> float:
        """Groups with at most two non-zeros, which lose nothing; 1 for an empty weight."""
        return sum(self.groups_by_nonzeros[: KEPT + 1]) / self.groups if self.groups else 1.0

    @property
    def share_of_nonzeros_dropped(self) -> float:
        """Dropped non-zeros of all non-zeros, 0 to 0.5."""
        return self.dropped / self.nonzeros if self.nonzeros else 0.0

    @property
    def share_of_energy_dropped(self) -> float:
        """Dropped energy of all energy, 0 to 0.5."""
        return self.energy_dropped / self.energy if self.energy else 0.0


def measure(weight: NvFp4Tensor, name: str = "weight") -> Loss:
    """Count what packing `weight` (logical shape `[..., K]`, K a multiple of 16) would drop, in float64.

    Raises TypeError and ValueError as `gb10.nvfp4.dequantize` does for parts that do not fit each other.
    """
    packed = weight.packed.reshape(-1, weight.packed.shape[-1])
    scales = weight.block_scales.reshape(-1, weight.block_scales.shape[-1])
    if packed.shape[0] != scales.shape[0] or packed.shape[1] * 2 != scales.shape[1] * BLOCK_SIZE:
        raise ValueError(
            f"packed {list(weight.packed.shape)} does not fit block scales {list(weight.block_scales.shape)}"
        )
    global_scale = _global_scale_of_rows(weight, packed.shape[0])
    counts = torch.zeros(GROUP + 1, dtype=torch.int64)
    energy = dropped = 0.0
    for begin in range(0, packed.shape[0], _ROWS_AT_ONCE):
        rows = slice(begin, begin + _ROWS_AT_ONCE)
        codes = unpack(packed[rows])
        groups = codes.reshape(codes.shape[0], -1, GROUP)
        nonzeros = ((groups & 7) != 0).sum(dim=-1).flatten()
        counts += torch.bincount(nonzeros, minlength=GROUP + 1).cpu()
        # Ties have equal squares: which one of them is kept does not matter here.
        squares = e2m1.decode(groups).to(torch.float64).square().sort(dim=-1, descending=True).values
        steps = scales[rows].to(torch.float64) * global_scale[rows]
        step_squares = steps.square().repeat_interleave(BLOCK_SIZE // GROUP, dim=-1)
        energy += float((squares.sum(dim=-1) * step_squares).sum())
        dropped += float((squares[..., KEPT:].sum(dim=-1) * step_squares).sum())
    none, one, two, three, four = (int(count) for count in counts)
    return Loss(name, (none, one, two, three, four), energy, dropped)


def total(losses: Iterable[Loss], name: str = "all") -> Loss:
    """All counts together."""
    counts = [0] * (GROUP + 1)
    energy = dropped = 0.0
    for loss in losses:
        counts = [a + b for a, b in zip(counts, loss.groups_by_nonzeros, strict=True)]
        energy += loss.energy
        dropped += loss.energy_dropped
    none, one, two, three, four = counts
    return Loss(name, (none, one, two, three, four), energy, dropped)


def table(losses: Sequence[Loss], width: int = 80) -> str:
    """A line per weight and one for all, at most `width` characters wide: long names lose their beginning."""
    rows = [_cells(loss) for loss in (*losses, total(losses))]
    sizes = [max(len(cells[i]) for cells in (_HEADINGS, *rows)) for i in range(1, len(_HEADINGS))]
    room = max(len(_HEADINGS[0]), width - sum(sizes) - 2 * len(sizes))
    room = min(room, max(len(cells[0]) for cells in (_HEADINGS, *rows)))
    lines = []
    for name, *cells in (_HEADINGS, *rows):
        short = name if len(name) <= room else "…" + name[len(name) - room + 1 :]
        numbers = (cell.rjust(size) for cell, size in zip(cells, sizes, strict=True))
        lines.append("  ".join((short.ljust(room), *numbers)))
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def _cells(loss: Loss) -> tuple[str, ...]:
    return (
        loss.name,
        f"{loss.groups * GROUP:,}",
        f"{loss.share_of_fitting_groups:.2%}",
        f"{loss.share_of_nonzeros_dropped:.2%}",
        f"{loss.share_of_energy_dropped:.2%}",
    )


def _global_scale_of_rows(weight: NvFp4Tensor, rows: int) -> torch.Tensor:
    """float64 `[rows, 1]`."""
    scale = weight.global_scale.to(device=weight.packed.device, dtype=torch.float64)
    if scale.numel() == 1:
        return scale.reshape(1, 1).expand(rows, 1)
    leading = weight.packed.shape[:-1]
    if scale.shape != leading[: scale.ndim]:
        raise ValueError(
            f"a global scale of shape {list(scale.shape)} does not fit packed {list(weight.packed.shape)}"
        )
    return scale.reshape(*scale.shape, *([1] * (len(leading) - scale.ndim))).expand(leading).reshape(rows, 1)
