"""Quantise activations and dequantise them again, with a record of every rounding that was a close call.

Rounding to NVFP4 is a step function. Where a number lies on the edge between two codes, two programs that
agree to the last bit but one still differ by a whole step. A comparison must be able to name that number.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from gb10.nvfp4 import BLOCK_SIZE, E2M1_MAX, UE4M3_MAX

EDGE = 3e-6
"""Roundings this close to the edge are recorded: relative for scales, in steps of the scale for values."""

_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


class Rounding(NamedTuple):
    """One rounding: at which site, for which token, and the number of its column or of its block of 16."""

    site: str
    token: int
    what: str
    number: int


@dataclass
class Recorder:
    """What one forward pass should do the other way round, and the close calls that it met."""

    flips: frozenset[Rounding] = frozenset()
    close_calls: dict[Rounding, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """A place where activations enter quantised linear maps. Without an input scale it changes nothing."""

    name: str
    input_scale: torch.Tensor | None
    recorder: Recorder

    def __call__(self, x: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Quantise and dequantise x, float32 [N, K]. `tokens` [N] has each row's token (default: 0..N-1).

        The order of the operations is that of the GPU kernels, which multiply by reciprocals:
        block scale = E4M3(1/input scale * (amax * 1/6))
        value = E2M1(x * (1 / (block scale * 1/(1/input scale))))
        """
        if self.input_scale is None:
            return x
        rows = range(x.shape[0]) if tokens is None else tokens.tolist()
        inverse = self.input_scale.reciprocal()
        blocks = x.reshape(x.shape[0], -1, BLOCK_SIZE)
        wanted = inverse * (blocks.abs().amax(-1) * (1 / E2M1_MAX))
        scales = self._round("block", wanted, _scale_neighbours(wanted), wanted, rows).unsqueeze(-1)
        factor = torch.where(scales == 0, 0.0, (scales * inverse.reciprocal()).reciprocal())
        ratio = (blocks * factor).clamp(-E2M1_MAX, E2M1_MAX).flatten(1)
        values = self._round("column", ratio.abs(), _value_neighbours(ratio.abs()), torch.ones(()), rows)
        signed = values.copysign(ratio).reshape(blocks.shape)
        return (signed * (scales / inverse)).flatten(1)

    def _round(
        self,
        what: str,
        x: torch.Tensor,
        neighbours: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        unit: torch.Tensor,
        rows: Sequence[int],
    ) -> torch.Tensor:
        """Choose the nearer neighbour of each number. Note the close calls; flip those that are asked for."""
        low, high, nearest = neighbours
        # A number that is a code itself has no edge near it.
        distance = torch.where(low < high, (x - (low + high) / 2).abs() / unit, torch.inf)
        for row, number in (distance < EDGE).nonzero().tolist():
            call = Rounding(self.name, rows[row], what, number)
            self.recorder.close_calls[call] = float(distance[row, number])
            if call in self.recorder.flips:
                nearest[row, number] = low[row, number] + high[row, number] - nearest[row, number]
        return nearest


def _scale_neighbours(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give the E4M3 numbers below, above and nearest (ties to even) to x >= 0. Above 448 all are 448."""
    x = x.clamp(max=UE4M3_MAX)
    nearest = x.to(torch.float8_e4m3fn)
    bits = nearest.view(torch.uint8).to(torch.int16)
    value = nearest.to(torch.float32)
    below = (bits - (value > x).to(torch.int16)).clamp(min=0)
    above = (bits + (value < x).to(torch.int16)).clamp(max=0x7E)
    low, high = (each.to(torch.uint8).view(torch.float8_e4m3fn).to(torch.float32) for each in (below, above))
    return low, high, value


def _value_neighbours(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give the E2M1 magnitudes below, above and nearest (ties to the even code) to 0 <= x <= 6."""
    above = torch.searchsorted(_E2M1, x.contiguous()).clamp(max=len(_E2M1) - 1)
    below = torch.where(_E2M1[above] == x, above, above - 1).clamp(min=0)
    low, high = _E2M1[below], _E2M1[above]
    middle = (low + high) / 2
    up = (x > middle) | ((x == middle) & (above % 2 == 0))
    return low, high, torch.where(up, high, low)
