"""An audit drawn: what a token reads as shipped, with FP8 and with NVFP4, a bar each."""

import importlib.util
from pathlib import Path

from gb10.audit.model import (
    ATTENTION,
    EXPERTS,
    FP8,
    GDN,
    GDN_IN,
    HEAD,
    KEEP,
    KV,
    NVFP4,
    ROUTER,
    SHARED,
    STATE,
)
from gb10.audit.report import Audit
from gb10.errors import UserError
from gb10.files import destination, replacing

_BARS = (("as shipped", KEEP), ("--dense fp8\n--head fp8", FP8), ("--dense nvfp4\n--head nvfp4", NVFP4))
_COLOURS = {
    GDN_IN: "#1f4e8c",
    GDN: "#5b8fd0",
    ATTENTION: "#2f9e8f",
    HEAD: "#c8553d",
    EXPERTS: "#e0a030",
    SHARED: "#8a6fb0",
    ROUTER: "#b0a68a",
    STATE: "#6a6a6a",
    KV: "#a8a8a8",
}
_OTHER = "#d0d0d0"


def check(file: Path) -> None:
    """Raise UserError where `draw` cannot work: better before the model is read than after."""
    if file.suffix != ".svg":
        raise UserError(f"--plot {file} is not named .svg")
    destination(file, "--plot")
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib, which `nix run .#audit` has; use that, or leave it out")


def draw(audit: Audit, file: Path) -> None:
    """Write the plot as SVG. The same audit gives the same bytes with one version of matplotlib.

    Raises UserError when the file cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    read = [audit.traffic(form, form) for _, form in _BARS]
    names = [name for name in read[0].parts if any(one.parts.get(name, 0) * 500 >= one.step for one in read)]
    with matplotlib.rc_context({"svg.hashsalt": "gb10.audit", "font.size": 10}):
        canvas, axes = pyplot.subplots(figsize=(7.6, 3.4), layout="constrained")
        places = list(range(len(_BARS)))
        starts = [0.0] * len(_BARS)
        for name in names:
            sizes = [one.parts.get(name, 0) / 1e9 for one in read]
            axes.barh(places, sizes, left=starts, color=_COLOURS.get(name, _OTHER), label=name, height=0.62)
            starts = [start + size for start, size in zip(starts, sizes, strict=True)]
        for place, one in zip(places, read, strict=True):
            most = 1 / one.floor(audit.bandwidth)
            axes.text(one.step / 1e9, place, f" {one.step / 1e9:.2f} GB\n ≤ {most:.0f} tok/s", va="center")
        axes.set_yticks(places, [words for words, _ in _BARS])
        axes.invert_yaxis()
        axes.set_xlim(0, read[0].step / 1e9 * 1.16)
        axes.set_xlabel(
            f"GB a token, batch 1, {audit.context} tokens of context; tok/s at {audit.bandwidth / 1e9:g} GB/s"
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(audit.model.name, loc="left", fontsize=10)
        canvas.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
        with replacing(file) as part:
            canvas.savefig(part, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(canvas)
