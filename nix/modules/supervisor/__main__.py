"""What the units start.

gb10.service: ``supervisor [--gpu] PROGRAM [ARGUMENT…]``.
gb10-gpu.service: ``supervisor --prepare-gpu SECONDS``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import driver
import secrets_given
from notify import Manager
from supervise import Supervisor

from gb10.errors import EXIT_MEMORY, UserError

_FOLDER = "CREDENTIALS_DIRECTORY"


def main(arguments: Sequence[str]) -> int:
    """Start what the unit says; the exit status."""
    gpu, prepare = (arguments[:1] == [option] for option in ("--gpu", "--prepare-gpu"))
    rest = list(arguments[1:] if gpu or prepare else arguments)
    try:
        if prepare:
            driver.prepare(_seconds(rest))
            return 0
        if not rest:
            raise UserError("no program to start; systemd starts this, by the unit gb10.service")
        given = secrets_given.read(os.environ)
        secrets_given.check(rest[1:], os.environ)
    except UserError as error:
        print(f"gb10: error: {error}", file=sys.stderr)
        Manager(os.environ).status(f"error: {error}")
        return error.exit_code
    if gpu and (why := driver.closed()) is not None:
        print(f"gb10: {why}; started again later", file=sys.stderr)
        Manager(os.environ).status(why)
        return EXIT_MEMORY
    variables = {name: value for name, value in os.environ.items() if name != _FOLDER}
    return Supervisor(rest, variables | given).run()


def _seconds(words: Sequence[str]) -> float:
    if len(words) != 1 or not words[0].isascii() or not words[0].isdigit():
        raise UserError("--prepare-gpu takes a whole number of seconds")
    return float(words[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
