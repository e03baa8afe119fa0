"""The table and the plot."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gb10.errors import UserError
from gb10_lab.quality.figures import Figures
from gb10_lab.quality.variants import REFERENCE

WIDTH = 80
_HEADINGS = ("", "perplexity", "change %", "top-1 %", "KL 1e-3 nat", "MB")
_NOTES = (
    "+ rows: as shipped (W4A16) and this one thing more. ±: one standard error.",
    "change, top-1, KL: against BF16. MB: weights that one decoded token reads.",
)


def table(names: Mapping[str, str], figures: Mapping[str, Figures]) -> str:
    """A line for each variant, at most 80 characters wide. `names` and `figures` are by the variant's key."""
    rows = [_HEADINGS, *((names[key], *_cells(key, each)) for key, each in figures.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [
        "  ".join(
            (
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            )
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join((*lines, *_NOTES))


def _cells(key: str, figures: Figures) -> tuple[str, ...]:
    size = f"{figures.bytes / 1e6:.2f}"
    perplexity = f"{figures.perplexity:.3f}"
    if key == REFERENCE:
        return perplexity, "", "", "", size
    return (
        perplexity,
        with_error(100 * figures.change, 100 * figures.change_error, sign="+"),
        f"{100 * figures.top1:.2f}",
        with_error(1e3 * figures.kl, 1e3 * figures.kl_error),
        size,
    )


def with_error(value: float, error: float, sign: str = "") -> str:
    """Write `value ± error` with as many decimals as two digits of the error need, 0 to 2."""
    decimals = 2 if error <= 0 else min(2, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:{sign}.{decimals}f} ±{error:.{decimals}f}"


def need_plots() -> None:
    """Raise UserError where `plot` cannot work: better before minutes of measuring than after."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("the plot needs matplotlib; install it, or do without plot with --check or --record")


def plot(names: Mapping[str, str], figures: Mapping[str, Figures], file: Path, form: str, title: str) -> None:
    """Draw KL against the bytes that a token reads. `form` is svg or png.

    The same figures give the same bytes with one version of matplotlib.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    with matplotlib.rc_context({"svg.hashsalt": "gb10_lab.quality", "font.size": 10}):
        canvas, axes = pyplot.subplots(figsize=(7.6, 4.4), layout="constrained")
        axes.set_yscale("log")
        shown = {key: each for key, each in figures.items() if key != REFERENCE}
        for key, each in shown.items():
            colour = _LOSSY if key == _SPARSE else _PLAIN
            place = each.bytes / 1e6, each.kl
            axes.errorbar(*place, yerr=each.kl_error, marker="o", markersize=5, capsize=3, color=colour)
        size = figures[REFERENCE].bytes / 1e6
        axes.axvline(size, color=_GREY, ls=":", lw=1)
        top = axes.get_xaxis_transform()
        axes.text(size, 0.98, "BF16: KL 0 ", transform=top, ha="right", va="top", fontsize=8, color=_GREY)
        axes.set(xlabel="weights read for one decoded token, MB", ylabel="KL(BF16 || variant), nats a token")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.set_title(title, loc="left", fontsize=10)
        _label(axes, {names[key]: (each.bytes / 1e6, each.kl) for key, each in shown.items()})
        canvas.savefig(file, format=form, metadata=_NO_DATE if form == "svg" else {}, dpi=160)
        pyplot.close(canvas)


def _label(axes: Any, places: Mapping[str, tuple[float, float]]) -> None:
    """Write each name beside its point, at the first of a few places where nothing else is; top down."""
    from matplotlib import transforms

    canvas = axes.get_figure()
    canvas.draw_without_rendering()
    room = axes.get_window_extent()
    points = [axes.transData.transform(place) for place in places.values()]
    taken = [transforms.Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    for name, place in sorted(places.items(), key=lambda entry: -entry[1][1]):
        for x, y in _LABEL_OFFSETS:
            text = axes.annotate(
                name, place, (x, y), textcoords="offset points", fontsize=8, ha="left" if x > 0 else "right"
            )
            box = text.get_window_extent()
            if room.x0 <= box.x0 and box.x1 <= room.x1 and not any(box.overlaps(other) for other in taken):
                break
            if (x, y) != _LABEL_OFFSETS[-1]:
                text.remove()
        taken.append(box)


_PLAIN, _LOSSY, _GREY = "#3b6fb6", "#c8553d", "#6a6a6a"
_SPARSE = "sparse24"
_NO_DATE = {"Date": None, "Creator": None}
_LABEL_OFFSETS = [(side * 7, height) for height in (3, -10, 14, -21, 25) for side in (1, -1)]
