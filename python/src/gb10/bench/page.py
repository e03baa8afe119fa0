"""A result as one HTML page: tables and plots, no script, nothing loaded from elsewhere."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from string import Template

from gb10.arguments import printable
from gb10.bench import compare, plots, table
from gb10.bench.results import FIGURES, Point, Result, Spread
from gb10.bench.table import Reads

_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { font: 15px/1.5 sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
body { color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: 0.2rem 0.7rem; border-bottom: 1px solid #ccc; text-align: right; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
small { color: #666; }
svg { max-width: 100%; height: auto; }
pre { overflow-x: auto; background: #f4f4f4; padding: 0.7rem; }
</style>
</head>
<body>
<h1>$title</h1>
$heading
$body
</body>
</html>
""")


_SIDE = Template("""\
<h2>Figures</h2>
<p>Median over the repeats; small: the quartiles.</p>
$figures
$plots
<h2>As printed</h2>
<pre>$printed</pre>
<h2>Settings and machine</h2>
<pre>$about</pre>
""")


def _row(cells: Iterable[str], tag: str = "td") -> str:
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"


def _cell(point: Point, name: str) -> str:
    return _spread(point.spread(name))


def _spread(spread: Spread) -> str:
    text = table.shown(spread.median)
    if spread.count < 2:
        return text
    return f"{text} <small>{table.shown(spread.low)}–{table.shown(spread.high)}</small>"


def _figures(points: Sequence[Point]) -> str:
    names = {
        "decode": "decode",
        "throughput": "all requests",
        "ttft": "to the first token",
        "itl": "gap between tokens",
        "prefill": "prefill",
    }
    heads = [f"{names[figure.name]}, {figure.unit}" for figure in FIGURES]
    rows = [_row(["text", "tokens in", *heads], "th")]
    rows += [
        _row(
            [escape(point.label), str(point.input_tokens), *(_cell(point, figure.name) for figure in FIGURES)]
        )
        for point in points
    ]
    return f"<table>{''.join(rows)}</table>"


def _side(result: Result, reads: Reads | None, side: str = "") -> str:
    """All of one result."""
    drawn = (
        ("Decoding, one request", plots.decode(result, side)),
        ("Requests side by side", plots.sweep(result, side)),
        ("Drafts", plots.accepted(result, side)),
    )
    about = {"settings": dict(result.settings), **result.about, "turns": list(result.turns)}
    return _SIDE.substitute(
        figures=_figures(result.points),
        plots="".join(f"<h2>{words}</h2>\n{svg}\n" for words, svg in drawn if svg),
        printed=escape(table.render(result, reads)),
        about=escape(json.dumps(about, indent=2)),
    )


def _heading(result: Result) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in table.heading(result))


def render(result: Result, reads: Reads | None = None) -> str:
    """The page. Raises UserError where matplotlib is missing."""
    return _PAGE.substitute(
        title=escape(printable(f"gb10 bench: {result.about.get('model')}")),
        heading=_heading(result),
        body=_side(result, reads),
    )


def _verdicts(first: Result, second: Result) -> str:
    heads = ("text", "figure", "A", "B", "B : A", "noise", "verdict")
    rows = [_row(heads, "th")]
    rows += [
        _row(
            (
                escape(row.point),
                f"{row.figure.name}, {row.figure.unit}",
                *(_spread(spread) for spread in (row.first, row.second)),
                f"{row.ratio:.2f}",
                f"{row.noise:.0%}",
                row.verdict,
            )
        )
        for row in compare.rows(first, second)
    ]
    return f"<table>{''.join(rows)}</table>"


def render_both(first: Result, second: Result, names: tuple[str, str]) -> str:
    """A page of two results: verdicts, then each side. Raises UserError as `compare.check` does."""
    sides = "AB"
    told = [f"<p>{side}: {escape(printable(name))}</p>" for side, name in zip(sides, names, strict=True)]
    told += [f"<p>{escape(line)}</p>" for line in compare.notes(first, second)]
    told += [
        "<h2>Verdicts</h2>",
        "<p>B : A is of speed, of times too: above 1, B is faster, and called so beyond the noise.</p>",
        _verdicts(first, second),
    ]
    parts = [
        f"<h1>{side}</h1>\n{_heading(result)}\n{_side(result, None, side)}"
        for side, result in zip(sides, (first, second), strict=True)
    ]
    return _PAGE.substitute(title="gb10 bench: A and B", heading="\n".join(told), body="\n".join(parts))
