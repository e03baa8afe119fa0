"""``gb10 doctor``."""

import json
import sys
from pathlib import Path
from typing import Annotated

from typer import Option

from gb10 import terminal
from gb10.doctor import record, report
from gb10.doctor.gather import gather
from gb10.errors import UserError


def run(
    as_json: Annotated[bool, Option("--json", help="print JSON")] = False,
    port: Annotated[
        int | None,
        Option(min=1, max=65535, help="port that shall be free; default: PORT, or 8000", show_default=False),
    ] = None,
    quick: Annotated[bool, Option("--quick", help="run no kernel and read no memory")] = False,
    to: Annotated[
        Path | None,
        Option("--record", metavar="FILE", help="write what is known, without names, addresses and keys"),
    ] = None,
    source: Annotated[
        Path | None, Option("--from", metavar="FILE", help="judge a machine that --record wrote")
    ] = None,
) -> int:
    """Say what of this machine stops a server or slows it down, and what mends it.

    Exit status 0: nothing is wrong; 1: warnings; 2: something stops a server, or the command line is wrong
    (then nothing is printed but one line of error). It changes nothing and needs no root.
    """
    if source is not None and (to or quick or port):
        raise UserError("--from judges what was recorded: --record, --quick and --port do not go with it")
    facts = gather(quick=quick, port=port) if source is None else record.read(source)
    if to is not None:
        record.write(facts, to)
    areas = report.judge(facts)
    if as_json:
        print(json.dumps(report.as_json(facts, areas), indent=2))
    else:
        colours = terminal.coloured(sys.stdout)
        sys.stdout.writelines(f"{line}\n" for line in report.lines(facts, areas, colours=colours))
    return report.status(report.findings(areas))
