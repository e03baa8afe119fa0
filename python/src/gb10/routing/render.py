"""The table as text."""

import textwrap
from collections.abc import Sequence

from gb10.routing.rules import BY_NAME, Batch
from gb10.routing.table import Route

_HEADS = ("operation", "tokens", "backend", "whose", "why")
_LEAST_ROOM = 16


def render(rows: Sequence[Route], width: int = 80) -> str:
    """The table as text, at most ``width`` (at least 60) columns wide. Reasons wrap under themselves.

    Where little room is left for the reasons, each has lines of its own under its row.
    """
    width = max(width, 60)
    cells = [
        (BY_NAME[row.operation].title, batch_text(row.batch), row.backend, row.whose, row.reason)
        for row in rows
    ]
    sizes = [max(len(text) for text in column) for column in zip(_HEADS, *cells, strict=True)][:-1]
    indent = sum(sizes) + 2 * len(sizes)
    lines = []
    if width - indent < _LEAST_ROOM:
        for *texts, whose, why in (_HEADS, *cells):
            lines.append(
                "  ".join(text.ljust(size) for text, size in zip(texts, sizes, strict=False)).rstrip()
            )
            lines += textwrap.wrap(f"{whose}: {why}", width, initial_indent="    ", subsequent_indent="    ")
        return "\n".join(lines)
    for *texts, why in (_HEADS, tuple("-" * size for size in (*sizes, 3)), *cells):
        wrapped = textwrap.wrap(why, width - indent)
        first = [text.ljust(size) for text, size in zip(texts, sizes, strict=True)]
        lines += ["  ".join([*first, wrapped[0]]), *(" " * indent + rest for rest in wrapped[1:])]
    return "\n".join(lines)


def batch_text(batch: Batch) -> str:
    """``(1, None)`` as "any", ``(1, 256)`` as "1-256", ``(257, None)`` as "257+"."""
    low, high = batch
    if high is None:
        return "any" if low == 1 else f"{low}+"
    return f"{low}-{high}"
