"""``python -m gb10_lab.predict fit``: the constants, what holding out gives, its table and its plot."""

from pathlib import Path
from typing import Annotated

from typer import Option

from gb10.errors import UserError
from gb10.predict.cost import Constants
from gb10.predict.measured import VLLM, rows
from gb10.predict.step import COUNTS, READS
from gb10_lab.predict.fit import fit, fitted_rows, prior
from gb10_lab.predict.ours import ours
from gb10_lab.predict.report import cells, excluded, families, sentence
from gb10_lab.predict.validate import Held, depth, drafts, held_out, including, others, spread

_HEAD = """\
# Written by `python -m gb10_lab.predict fit`: fitted on measurements.toml. Not for editing.
# "any": of an engine of which nothing was fitted (lab/src/gb10_lab/predict/priors.py).
# "gb10": of its profile on an H200 (lab/src/gb10_lab/predict/ours.py).
# held_out: relative errors of tokens a second, vLLM's rows, each family held out; `most`: 4 of 5 are within.
"""
DIGITS = 6
EAGER = "120b-marlin"
"""The row whose conditions were looked up after its residual was seen."""


def _table(name: str, values: dict[str, float]) -> str:
    return "\n".join([f"[{name}]", *(f'"{key}" = {value:.{DIGITS}g}' for key, value in values.items())])


def _engine(name: str, constants: Constants) -> list[str]:
    title = f'engine."{name}"'
    found = [
        _table(f"{title}.gigabytes_per_second", {kind: constants.rates[kind] / 1e9 for kind in READS}),
        _table(f"{title}.microseconds", {kind: constants.pieces[kind] * 1e6 for kind in COUNTS}),
    ]
    return [*found, _table(f"{title}.stacks", dict(constants.stacks))] if constants.stacks else found


def constants_text(results: Path) -> str:
    """What constants.toml says. ``results``: the file of engine-bench with the profile of our engine."""
    stock = fit(fitted_rows(VLLM))
    llama = fit(fitted_rows("llama.cpp"))
    found = spread(held_out())
    parts = [
        *_engine(VLLM, stock),
        *_engine("llama.cpp", llama),
        *_engine("any", prior()),
        *_engine("gb10", ours(results, stock)),
    ]
    held = (
        f"[held_out]\npoints = {found.points}\nmedian = {found.median:.4f}\nmost = {found.most:.4f}\n"
        f"worst = {found.worst:.4f}"
    )
    return _HEAD + "\n" + "\n\n".join([*parts, held]) + "\n"


def groups() -> dict[str, list[Held]]:
    """What was predicted without being fitted on, by what it is."""
    return {
        "vLLM, family held out": held_out(),
        "llama.cpp at depth, never fitted": depth(),
        "other engines, family held out": others(),
        "drafts, never fitted": drafts(),
    }


def _lines(title: str, held: list[Held]) -> list[str]:
    return [
        f"{title}: {sentence(held)}",
        *(
            f"  {one.family:<20}{one.row.id:<24}{one.row.tokens_per_second:8.2f}{one.predicted:8.2f}"
            f"{one.error:+8.1%}"
            for one in held
        ),
    ]


def run(
    results: Annotated[
        Path, Option(metavar="FILE", help="engine-bench's results with the profile of our engine")
    ],
    constants: Annotated[
        Path | None, Option(metavar="FILE", help="write constants.toml", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, Option(metavar="FILE", help="draw docs/predict.svg", show_default=False)
    ] = None,
    markdown: Annotated[bool, Option("--markdown", help="print the tables of docs/predict.md")] = False,
) -> int:
    """Fit the constants of gb10 predict and print how far held-out rows are off."""
    if not results.is_file():
        raise UserError(f"--results {results} is no file; it is one of engine-bench's in lab/results")
    text = constants_text(results)
    if constants is not None:
        constants.write_text(text)
    found = groups()
    if markdown:
        print("\n".join(families(next(iter(found.values())))))
    for title, held in found.items():
        print("\n" + "\n".join(cells(held) if markdown else _lines(title, held)))
    if markdown:
        print("\n" + "\n".join(excluded(rows())))
    print(f"\nwith {EAGER} fitted and held out as well: {sentence(held_out(including(EAGER)))}")
    if plot is not None:
        from gb10_lab.predict.plot import draw

        draw(plot, found)
    return 0
