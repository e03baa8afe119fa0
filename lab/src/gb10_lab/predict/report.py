"""The tables of docs/predict.md."""

from collections.abc import Sequence

from gb10.predict.measured import EXCLUDED, Row
from gb10_lab.predict.validate import Held, spread, within

_HEAD = (
    "| row | engine | measured | predicted | off | conf. | source |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


def sentence(held: Sequence[Held]) -> str:
    """The sizes of the errors in words."""
    found = spread(held)
    return (
        f"{found.points} points, median {found.median:.1%}, {within(held):.0%} within 10 %, "
        f"4 of 5 within {found.most:.1%}, worst {found.worst:.1%}"
    )


def cells(held: Sequence[Held]) -> list[str]:
    """A row for each figure, with its source."""
    return [
        *_HEAD,
        *(
            f"| {one.row.id} | {one.row.engine} | {one.row.tokens_per_second:g} "
            f"| {one.predicted:.2f} | {one.error:+.1%} | {one.row.confidence} "
            f"| {one.row.source} |"
            for one in held
        ),
    ]


def excluded(given: Sequence[Row]) -> list[str]:
    """A row for each figure that is left out, and why."""
    return [
        "| row | measured | why not | source |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row.id} | {row.tokens_per_second:g} | {row.reason} | {row.source} |"
            for row in given
            if row.use == EXCLUDED
        ),
    ]


def families(held: Sequence[Held]) -> list[str]:
    """A row for each family that was held out, and one for all."""
    lines = ["| family held out | n | median | worst | within 10 % |", "| --- | --- | --- | --- | --- |"]
    groups = {
        family: [one for one in held if one.family == family] for family in (one.family for one in held)
    }
    for name, part in [*groups.items(), ("all", list(held))]:
        found = spread(part)
        lines.append(
            f"| {name} | {found.points} | {found.median:.1%} | {found.worst:.1%} | {within(part):.0%} |"
        )
    return lines
