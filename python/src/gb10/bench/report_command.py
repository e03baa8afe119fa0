"""``gb10 bench report RESULT``."""

from pathlib import Path
from typing import Annotated

from typer import Argument

from gb10.bench import options, report, results, table


def run(
    file: Annotated[Path, Argument(metavar="RESULT", help="what --json wrote")],
    bytes_per_token: options.BytesPerToken = None,
    bandwidth: options.Bandwidth = None,
    html: options.Html = None,
    formats: options.Format = None,
) -> int:
    """Print a result again, and make reports of it."""
    reads = options.reads(bytes_per_token, bandwidth)
    wanted = report.outputs(None, html, formats)
    result = results.load(file)
    reads = reads or table.kept(result)
    print(table.render(result, reads), end="")
    report.write(result, wanted, reads)
    return 0
