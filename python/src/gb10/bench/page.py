"""A result as one HTML page: tables and plots, no script, nothing loaded from elsewhere."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from string import Template

from gb10.arguments import printable
from gb10.bench import plots, table
from gb10.bench.results import FIGURES, Point, Result
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
<h2>Figures</h2>
<p>Median over the repeats; small: the quartiles.</p>
$figures
$plots
<h2>As printed</h2>
<pre>$printed</pre>
<h2>Settings and machine</h2>
<pre>$about</pre>
</body>
</html>
""")


def _row(cells: Iterable[str], tag: str = "td") -> str:
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"


def _cell(point: Point, name: str) -> str:
    spread = point.spread(name)
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


def render(result: Result, reads: Reads | None = None) -> str:
    """The page. Raises UserError where matplotlib is missing."""
    drawn = (
        ("Decoding, one request", plots.decode(result)),
        ("Requests side by side", plots.sweep(result)),
        ("Drafts", plots.accepted(result)),
    )
    about = {"settings": dict(result.settings), **result.about, "turns": list(result.turns)}
    return _PAGE.substitute(
        title=escape(printable(f"gb10 bench: {result.about.get('model')}")),
        heading="".join(f"<p>{escape(line)}</p>" for line in table.heading(result)),
        figures=_figures(result.points),
        plots="".join(f"<h2>{words}</h2>\n{svg}\n" for words, svg in drawn if svg),
        printed=escape(table.render(result, reads)),
        about=escape(json.dumps(about, indent=2)),
    )
