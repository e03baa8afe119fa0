"""Plots of a result as SVG, drawn by matplotlib, to stand inside a page."""

import io
import re
from collections.abc import Sequence
from typing import Any

from gb10.arguments import printable
from gb10.bench import battery
from gb10.bench.results import Point, Result
from gb10.errors import UserError

_COLOUR, _SECOND = "#76b900", "#3b6ea5"
_SIZE = (6.4, 3.2)


def _library() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(
            f"the report's plots need matplotlib ({error}); keep the result with --json and run: "
            "nix run .#bench -- report FILE --html PAGE"
        ) from None
    matplotlib.use("svg")
    # Text stays text, and two pages of one result are equal.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "gb10", "font.size": 9})
    from matplotlib import pyplot

    return pyplot


def check() -> None:
    """Raises UserError where nothing can be drawn: before the measurement, not after."""
    _library()


def _svg(figure: Any, words: str, name: str, side: str) -> str:
    pyplot = _library()
    figure.tight_layout()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    # Without the head that only a file has; identifiers of several plots in one page must differ.
    text = text[text.index("<svg") :]
    text = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{side}{name}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{words}" ', 1)


def _words(text: str) -> str:
    """Text that matplotlib takes as it is: a dollar sign begins a formula there."""
    return printable(text).replace("$", r"\$")


def _bars(points: Sequence[Point], figure: str) -> tuple[list[float], list[list[float]]]:
    """Heights, and how far down and up the quartiles are."""
    spreads = [point.spread(figure) for point in points]
    reach = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
    return [spread.median for spread in spreads], reach


def _from_zero(axes: Any, heights: Sequence[float], reach: Sequence[Sequence[float]]) -> None:
    """Show zero, and room above the highest quartile."""
    top = max(height + up for height, up in zip(heights, reach[1], strict=True))
    axes.set_ylim(0, 1.1 * top)


def decode(result: Result, side: str = "") -> str:
    """Tokens a second of each text alone. ``side``: which of two results in one page."""
    points = [point for point in result.points if point.concurrency == 1]
    figure, axes = _library().subplots(figsize=_SIZE)
    heights, reach = _bars(points, "decode")
    axes.bar([_words(point.text) for point in points], heights, yerr=reach, color=_COLOUR, capsize=4)
    axes.set_ylabel("tok/s, one request")
    _from_zero(axes, heights, reach)
    return _svg(figure, "Tokens a second of each text", "decode", side)


def sweep(result: Result, side: str = "") -> str:
    """Throughput and time to the first token by requests side by side; empty where only one was asked for."""
    points = [point for point in result.points if point.text == battery.MIXED]
    if not points:
        return ""
    figure, (left, right) = _library().subplots(1, 2, figsize=(_SIZE[0] * 1.4, _SIZE[1]))
    counts = [point.concurrency for point in points]
    for axes, name, words, colour in (
        (left, "throughput", "tok/s, all requests", _COLOUR),
        (right, "ttft", "ms to the first token", _SECOND),
    ):
        heights, reach = _bars(points, name)
        axes.errorbar(counts, heights, yerr=reach, marker="o", color=colour, capsize=4)
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xlabel("requests side by side")
        axes.set_ylabel(words)
        _from_zero(axes, heights, reach)
    return _svg(figure, "Throughput and time to the first token", "sweep", side)


def accepted(result: Result, side: str = "") -> str:
    """Share of drafts accepted at each position; empty without drafts."""
    points = [(point, drafts) for point in result.points if (drafts := point.drafts) is not None]
    if not points:
        return ""
    figure, axes = _library().subplots(figsize=_SIZE)
    for point, drafts in points:
        shares = drafts.by_position
        axes.plot(range(1, len(shares) + 1), shares, marker="o", label=_words(point.label))
    axes.set_xlabel("position of the draft")
    axes.set_ylabel("accepted")
    axes.set_xticks(range(1, 1 + max(len(drafts.by_position) for _, drafts in points)))
    axes.set_ylim(0, 1)
    axes.legend()
    return _svg(figure, "Drafts accepted by position", "accepted", side)
