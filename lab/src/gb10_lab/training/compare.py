"""Hold a training run against the one that made the model of this repository: is it the same model again?

Seeds fix the first weights and the order of the text, but GPU kernels add in another order each time, so a
second run gives other bits. What must be equal is the recipe: text, tokenizer, sizes, steps, rates. What may
differ, by no more than a tolerance, is what came of it. The model card has the runs that the tolerances come
from.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from gb10.errors import EXIT_FAILED, UserError
from gb10.files import read_json
from gb10_lab.testbed.checkpoint import RECORD

LOSS = 0.02
"""Nats a token of held-out text. Runs again differed by 0.0003 and 0.011, half the text makes 0.046."""

ACCEPTANCE = 0.005
"""Share of held-out drafts. Runs again differed by up to 0.0025, half the text makes 0.006."""

_RESULTS = frozenset(
    [
        *("seed", "seconds", "tokens_per_second", "curve", "machine", "commit"),
        *("heldout", "heldout_before_rounding", "acceptance"),
    ]
)
"""What a stage's record has beside its recipe. The seed is free: another one makes as good a model."""


@dataclass(frozen=True)
class Figure:
    """One result of two runs."""

    name: str
    recorded: float
    found: float
    tolerance: float

    @property
    def within(self) -> bool:
        """Whether the run is close enough. A loss that is not a number is not."""
        return abs(self.found - self.recorded) <= self.tolerance


def run(
    model: Annotated[Path, Option(metavar="DIR", help="the model that was trained")],
    recorded: Annotated[
        Path, Option(metavar="DIR", envvar="GB10_TESTBED", help="the model to hold it against")
    ],
) -> int:
    """Print what two training runs came to. The exit status is 1 for another recipe or another result."""
    one, other = (_read(folder / RECORD) for folder in (recorded, model))
    unlike = list(differences(one, other))
    results = figures(one, other)
    print(table(results))
    for line in unlike:
        print(f"another recipe: {line}")
    beyond = [figure.name for figure in results if not figure.within]
    if beyond:
        print(f"not the same model: {', '.join(beyond)} beyond tolerance")
    if unlike or beyond:
        return EXIT_FAILED
    print(f"the model of {recorded} again, within tolerance")
    return 0


def differences(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """Say in a line each what the recipes of two records have different."""
    for part in ("data", "pretrain", "draft"):
        one, other = recorded[part], found[part]
        for name in sorted((one.keys() | other.keys()) - _RESULTS):
            if one.get(name) != other.get(name):
                yield f"{part} {name} is {other.get(name)}, recorded is {one.get(name)}"


def figures(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[Figure]:
    """Give the results of two records side by side: held-out loss, accepted drafts by position.

    A position that only one of them has is not a number in the other.
    """
    losses = [record["pretrain"]["heldout"]["loss"] for record in (recorded, found)]
    accepted = [record["draft"]["acceptance"]["all"]["accepted"] for record in (recorded, found)]
    return [
        Figure("held-out loss", losses[0], losses[1], LOSS),
        *(
            Figure(f"accepted at {position}", one, other, ACCEPTANCE)
            for position, (one, other) in enumerate(zip_longest(*accepted, fillvalue=math.nan), start=1)
        ),
    ]


def table(results: list[Figure]) -> str:
    """Give the figures as lines of text, 60 columns wide."""
    lines = [f"{'':16}{'recorded':>10}{'here':>10}{'difference':>13}{'allowed':>11}"]
    lines += [
        f"{figure.name:16}{figure.recorded:10.4f}{figure.found:10.4f}"
        f"{figure.found - figure.recorded:+13.4f}{figure.tolerance:11.3f}"
        for figure in results
    ]
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    """Read a record with the stages that count. Raises UserError when it is none."""
    record: dict[str, Any] = read_json(path)
    try:
        list(differences(record, record))
        table(figures(record, record))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} is no record of text, pretraining and draft head: {what}") from error
    return record
