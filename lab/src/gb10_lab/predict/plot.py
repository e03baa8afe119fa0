"""docs/predict.svg: measured against predicted."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from gb10_lab.predict.validate import Held

_BAND = 0.1
_MARKS = "os^D"


def draw(file: Path, groups: Mapping[str, Sequence[Held]]) -> None:
    """Draw each group's rows, measured tokens a second against predicted, with a band of 10 %."""
    values = [
        value
        for held in groups.values()
        for one in held
        for value in (one.row.tokens_per_second, one.predicted)
    ]
    ends = [min(values) * 0.8, max(values) * 1.25]
    with matplotlib.rc_context({"svg.hashsalt": "gb10_lab.predict", "font.size": 10}):
        figure = Figure(figsize=(7.2, 5.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(ends, ends, color="0.4", linewidth=0.8)
        axes.fill_between(
            ends,
            [end * (1 - _BAND) for end in ends],
            [end * (1 + _BAND) for end in ends],
            color="0.88",
            label="off by at most 10 %",
        )
        for mark, (name, held) in zip(_MARKS, groups.items(), strict=False):
            axes.plot(
                [one.row.tokens_per_second for one in held],
                [one.predicted for one in held],
                mark,
                markersize=5,
                alpha=0.8,
                label=f"{name} ({len(held)})",
            )
        ticks = [5, 10, 20, 40, 80]
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_yticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("measured by others on a GB10, tokens a second")
        axes.set_ylabel("predicted without it, tokens a second")
        axes.legend(loc="upper left", frameon=False)
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
