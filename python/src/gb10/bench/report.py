"""Files that a result is written to: looked at before the measurement, written after it, each whole."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gb10.bench import formats, page, plots
from gb10.bench.results import Result
from gb10.bench.table import Reads
from gb10.errors import UserError
from gb10.files import check_writable, replacing, write_json


@dataclass(frozen=True)
class Outputs:
    """What to write, each None or empty where it was not asked for."""

    json: Path | None
    html: Path | None
    others: tuple[tuple[str, Path], ...]

    @property
    def files(self) -> list[Path]:
        """All of them."""
        return [
            path for path in (self.json, self.html, *(path for _, path in self.others)) if path is not None
        ]


def outputs(json: Path | None, html: Path | None, others: Sequence[str] | None) -> Outputs:
    """Of the options. Raises UserError for what could not be written after a long measurement."""
    found = []
    for word in others or ():
        name, _, file = word.partition("=")
        if name not in formats.WRITERS or not file:
            raise UserError(
                f"--format {word!r} is not NAME=FILE with a name of: {', '.join(formats.WRITERS)}"
            )
        found.append((name, Path(file)))
    wanted = Outputs(json, html, tuple(found))
    for path in wanted.files:
        check_writable(path)
        if wanted.files.count(path) > 1:
            raise UserError(f"{path} is asked for twice; give each a file of its own")
    if html is not None:
        plots.check()
    return wanted


def write(result: Result, wanted: Outputs, reads: Reads | None) -> None:
    """Write all that was asked for, with a line on the standard error output for each."""
    if wanted.json is not None:
        write_json(wanted.json, result.as_json(), indent=None)
        _say(wanted.json)
    for name, file in wanted.others:
        empty = formats.write(result, name, file)
        _say(file, f"; left empty: {', '.join(empty)}")
    if wanted.html is not None:
        text = page.render(result, reads)
        with replacing(wanted.html) as part:
            part.write_text(text, encoding="utf-8")
        _say(wanted.html)


def _say(file: Path, more: str = "") -> None:
    print(f"wrote {file}{more}", file=sys.stderr)
