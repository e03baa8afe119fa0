"""How long earlier starts of the same server took, stage by stage, so that this one can say how long it may.

They are kept beside the logs, in one small file a user. A file that is damaged, cannot be written, or is of
another version is as good as none: then there is no estimate.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from gb10 import __version__
from gb10.errors import UserError
from gb10.files import open_regular, write_json
from gb10.serve.environment import log_folder

if TYPE_CHECKING:
    from gb10.serve.command import Plan

SCHEMA = 1
KEPT_STARTS = 5
"""Of each server."""
KEPT_SERVERS = 64
_LARGEST = 1 << 20
_APART = 0.3
"""Earlier starts that differ by more of their median are told as a range: caches were cold once, or not."""
_OF_NO_WEIGHT = ("--host", "--port", "--uds", "--served-model-name", "--api-key")
"""Options that change nothing about how long a start takes."""

Stages = Mapping[str, float]
"""Seconds by stage, in the order in which they began."""


@dataclass(frozen=True)
class Estimate:
    """Seconds that a start may take in all."""

    least: float
    middle: float
    most: float

    def words(self, seconds: float) -> str:
        """``18 s``, as far as it has come after so many seconds: ``12 s of about 18 s``."""
        if seconds > self.most:
            return f"{seconds:.0f} s, {self.most:.0f} s before"
        if self.most - self.least > _APART * self.middle:
            return f"{seconds:.0f} s of {self.least:.0f} to {self.most:.0f} s"
        return f"{seconds:.0f} s of about {self.middle:.0f} s"


def estimate(earlier: Sequence[Stages], stage: str, began: float) -> Estimate | None:
    """What a start may take that came to ``stage`` after ``began`` seconds; None where no other did."""
    totals = []
    for start in earlier:
        names = list(start)
        if stage in names:
            totals.append(began + sum(list(start.values())[names.index(stage) :]))
    return Estimate(min(totals), median(totals), max(totals)) if totals else None


def key_of(plan: "Plan") -> str:
    """What two starts have alike that should take as long: version, model, machine, arguments; as a hash."""
    arguments = [
        word
        for before, word in pairwise(["", *plan.arguments])
        if before not in _OF_NO_WEIGHT and word.partition("=")[0] not in _OF_NO_WEIGHT
    ]
    alike: list[Any] = [__version__, str(plan.checkpoint.folder), str(plan.target), arguments]
    return hashlib.sha256(json.dumps(alike).encode()).hexdigest()


def place(environment: Mapping[str, str]) -> Path | None:
    """The file; None for a user without a home."""
    logs = log_folder(environment)
    return None if logs is None else logs.parent / "starts.json"


def _read(file: Path) -> dict[str, list[dict[str, float]]]:
    """All that is kept, the latest servers last; nothing where that cannot be understood."""
    try:
        with open_regular(file) as opened:
            content = json.loads(opened.read(_LARGEST))
        if content["schema"] != SCHEMA:
            return {}
        return {
            str(key): [{str(name): float(value) for name, value in one.items()} for one in starts]
            for key, starts in content["starts"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def earlier(file: Path | None, key: str) -> Sequence[Stages]:
    """What earlier starts took, the latest last."""
    return [] if file is None else _read(file).get(key, [])


def keep(file: Path | None, key: str, stages: Stages) -> None:
    """Keep what a start took that came to its end."""
    if file is None:
        return
    known = _read(file)
    starts = [*known.pop(key, []), {name: round(seconds, 2) for name, seconds in stages.items()}]
    servers = [*known.items(), (key, starts[-KEPT_STARTS:])]
    with contextlib.suppress(UserError):
        write_json(file, {"schema": SCHEMA, "starts": dict(servers[-KEPT_SERVERS:])}, indent=None)
