"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from gb10.arguments import whole
from gb10.bench import battery, formats
from gb10.bench.measure import LEAST_LONG, Plan
from gb10.bench.table import Reads
from gb10.bench.watch import Limits
from gb10.errors import UserError
from gb10.units import parse_bytes, parse_count, parse_decimal

LEAST_TOKENS = 16
"""Below this an answer is too short to be timed."""
_MOST_CONCURRENT = 1024


def _size(given: Any) -> int:
    try:
        return parse_bytes(str(given))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _length(given: Any) -> int:
    try:
        found = 0 if str(given) == "0" else parse_count(str(given))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if 0 < found < LEAST_LONG:
        raise typer.BadParameter(f"{given} is below {LEAST_LONG}; 0 takes the long input out")
    return found


def _seconds(given: Any) -> float:
    try:
        found = parse_decimal(str(given))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if found == 0:
        raise typer.BadParameter("0 s is no time for an answer")
    return found


def _rate(given: Any) -> float:
    try:
        found = parse_decimal(str(given))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if found == 0:
        raise typer.BadParameter("0 GB/s is no bandwidth")
    return found


Model = Annotated[str | None, Option(metavar="NAME", help="which of the served models; default: the first")]
Chat = Annotated[bool, Option("--chat", help="ask as in a chat; default: texts are continued")]
Insecure = Annotated[bool, Option("--insecure", help="take any certificate")]
Texts = Annotated[
    list[str] | None,
    Option(metavar="NAME…", help=f"of {', '.join(battery.TEXTS)}; default: all"),
]
Concurrency = Annotated[
    list[int] | None,
    Option(metavar="N…", parser=whole(1), help="requests side by side; default: 1 4 16"),
]
Tokens = Annotated[int, Option(metavar="N", parser=whole(LEAST_TOKENS), help="tokens of each answer")]
Long = Annotated[int, Option(metavar="TOKENS", parser=_length, help="the long input, 8k or 8192; 0: none")]
Repeats = Annotated[int, Option("--repeat", metavar="N", parser=whole(1), help="repeats after the warm-up")]
GapLimit = Annotated[
    float,
    Option(metavar="SECONDS", parser=_seconds, help="between two tokens of an answer; then it hangs"),
]
RequestLimit = Annotated[
    float, Option(metavar="SECONDS", parser=_seconds, help="for a whole answer, prefill counted in")
]
Commit = Annotated[str | None, Option(metavar="ID", help="of what serves; kept in the result")]
BytesPerToken = Annotated[
    int | None,
    Option(metavar="BYTES", parser=_size, help="that a decoded token reads; default: what the server says"),
]
ModelFiles = Annotated[
    Path | None,
    Option(metavar="FOLDER", help="of the served model: the bytes of a token are summed over its headers"),
]
Bandwidth = Annotated[
    float | None,
    Option(metavar="GB/S", parser=_rate, help="measured on the machine; shows the share of it"),
]
Json = Annotated[Path | None, Option("--json", metavar="FILE", help="every sample, for compare and report")]
Html = Annotated[Path | None, Option("--html", metavar="FILE", help="a report with plots, in one file")]
Format = Annotated[
    list[str] | None,
    Option("--format", metavar="NAME=FILE", help=f"also as {' or '.join(formats.WRITERS)}"),
]


def plan(
    texts: list[str] | None,
    concurrency: list[int] | None,
    tokens: int,
    long: int,
    repeats: int,
    chat: bool,
    limits: Limits,
) -> Plan:
    """The plan of these options. Raises UserError for a name that is none."""
    for name in texts or ():
        if name not in battery.TEXTS:
            raise UserError(f"there is no text named {name!r}; there are: {', '.join(battery.TEXTS)}")
    counts = sorted(set(concurrency or (1, 4, 16)))
    if counts[-1] > _MOST_CONCURRENT:
        raise UserError(f"--concurrency {counts[-1]} is above {_MOST_CONCURRENT}")
    chosen = tuple(name for name in battery.TEXTS if not texts or name in texts)
    return Plan(chosen, tuple(counts), tokens, long, repeats, chat, limits)


def reads(bytes_per_token: int | None, bandwidth: float | None, *, alone: bool = True) -> Reads | None:
    """Raises UserError for a bandwidth without bytes, where it stands ``alone``."""
    if bytes_per_token:
        return Reads(bytes_per_token, bandwidth)
    if (alone and bandwidth is not None) or bytes_per_token == 0:
        raise UserError("--bandwidth needs --bytes-per-token above 0; gb10 audit MODEL says how many")
    return None
