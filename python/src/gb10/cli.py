"""The ``gb10`` command.

Start-up stays below a tenth of a second: no module imported here may import torch or vLLM. Each
subcommand is imported only when it runs.
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gb10 import __version__
from gb10.errors import EXIT_USAGE, UserError


@dataclass(frozen=True)
class Subcommand:
    """A subcommand and the module whose ``run(argv) -> int`` does the work."""

    name: str
    module: str
    summary: str


SUBCOMMANDS = (
    Subcommand("serve", "gb10.serve", "serve a model with an OpenAI-compatible API"),
    Subcommand("routing", "gb10.routing.command", "print what runs where, and why"),
)


def usage() -> str:
    """The text of ``gb10 --help``."""
    lines = [
        "usage: gb10 COMMAND [arguments]",
        "",
        "NVFP4 models on vLLM, for the NVIDIA DGX Spark (GB10).",
        "",
    ]
    lines += [f"  {command.name:<10}{command.summary}" for command in SUBCOMMANDS]
    lines += ["", "gb10 COMMAND --help explains a command.  gb10 --version prints the version."]
    return "\n".join(lines)


def _find(name: str) -> Subcommand:
    for command in SUBCOMMANDS:
        if command.name == name:
            return command
    known = ", ".join(command.name for command in SUBCOMMANDS)
    raise UserError(f"no command named {name!r}; the commands are: {known}")


def _dispatch(argv: Sequence[str]) -> int:
    if not argv:
        print(usage(), file=sys.stderr)
        return EXIT_USAGE
    if argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"gb10 {__version__}")
        return 0
    command = _find(argv[0])
    run: Callable[[Sequence[str]], int] = importlib.import_module(command.module).run
    return run(argv[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``gb10`` and return its exit status: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    try:
        return _dispatch(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"gb10: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`gb10 routing | head`). Not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
