"""``gb10 bench report RESULT``."""

from pathlib import Path
from typing import Annotated

from typer import Argument

from gb10.bench import options, report, results, table
from gb10.errors import UserError


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
    if file.resolve() in {one.resolve() for one in wanted.files}:
        raise UserError(f"{file} is what is read; give the report another place")
    reads = reads or table.kept(result)
    print(table.render(result, reads), end="")
    report.write(result, wanted, reads)
    return 0
