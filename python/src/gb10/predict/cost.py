"""The time of a step: what each kind of work costs, as fitted (constants.toml)."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from gb10.predict.step import KINDS, READS


@dataclass(frozen=True)
class Constants:
    """What one engine's work costs.

    Attributes:
        rates: Kind of `READS` to bytes a second.
        pieces: Kind of `COUNTS` to seconds.
        stacks: Image or author to the logarithm of how much longer its steps take than the engine's.
    """

    rates: Mapping[str, float]
    pieces: Mapping[str, float]
    stacks: Mapping[str, float]

    def times(self, work: Mapping[str, float], stack: str = "") -> dict[str, float]:
        """Kind to seconds of a step."""
        longer = math.exp(self.stacks.get(stack, 0.0))
        return {
            kind: longer
            * (work[kind] / self.rates[kind] if kind in READS else work[kind] * self.pieces[kind])
            for kind in KINDS
        }


@dataclass(frozen=True)
class Spread:
    """How far predictions of an engine were off where the model's whole family was held out: relative errors
    of tokens a second. ``most``: four of five points lie within it."""

    points: int
    median: float
    most: float
    worst: float


@dataclass(frozen=True)
class Fitted:
    """What constants.toml has: constants of each engine, and what holding families out gave."""

    engines: Mapping[str, Constants]
    spread: Spread


def constants(table: Mapping[str, Mapping[str, float]]) -> Constants:
    """One engine's constants from its table: GB/s, microseconds, logarithms."""
    return Constants(
        {kind: rate * 1e9 for kind, rate in table["gigabytes_per_second"].items()},
        {kind: time * 1e-6 for kind, time in table["microseconds"].items()},
        dict(table.get("stacks", {})),
    )


@cache
def fitted() -> Fitted:
    """The constants that are shipped."""
    tables = tomllib.loads((files("gb10.predict") / "constants.toml").read_text())
    return Fitted(
        {name: constants(table) for name, table in tables["engine"].items()},
        Spread(**tables["held_out"]),
    )
