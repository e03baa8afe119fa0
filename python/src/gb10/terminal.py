"""What may be written to a terminal: colours, a line that changes, and how wide it is."""

import os
from collections.abc import Mapping
from typing import TextIO

COLUMNS = 80
"""Width of what does not say its own."""


def moves(out: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a line can be drawn over: on a terminal that is not a dumb one."""
    return out.isatty() and environ.get("TERM") != "dumb"


def coloured(out: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether there is a terminal, and nobody said NO_COLOR or that it is a dumb one."""
    return moves(out, environ) and not environ.get("NO_COLOR")


def columns(out: TextIO) -> int:
    """Width of a terminal as it is now; 80 where it does not say."""
    try:
        return os.get_terminal_size(out.fileno()).columns or COLUMNS
    except (OSError, ValueError):
        return COLUMNS
