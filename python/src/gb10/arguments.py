"""Command lines: groups of commands that are imported when they run, and errors of one line."""

import contextlib
import difflib
import errno
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.main import get_group

from gb10 import __version__
from gb10.errors import EXIT_USAGE, UserError

_INTERRUPTED = 130
_HELP = {"help_option_names": ["-h", "--help"]}


@dataclass(frozen=True)
class Command:
    """A command of a group: "module:function", and what it is for in a few words.

    The function returns the exit status. Its parameters are the command's options, as typer reads them, and
    its docstring is the help; with ``passed_on`` it takes all arguments as one list and reads them itself.
    """

    place: str
    summary: str
    passed_on: bool = False

    def load(self) -> Callable[..., int]:
        """Import the function."""
        module, _, name = self.place.partition(":")
        function: Callable[..., int] = getattr(importlib.import_module(module), name)
        return function


def run(prog: str, about: str, commands: Mapping[str, Command], argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` (default: the process's arguments) names; no other is imported.

    Returns the exit status: 0 done, 1 failed, 2 bad input, which is one line, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    unset_empty(os.environ)
    _open_streams()
    try:
        if arguments:
            try:
                return _run(prog, about, commands, arguments)
            finally:
                # Else it is written when Python ends, where a reader that is gone is an exit status of 120.
                sys.stdout.flush()
        with contextlib.redirect_stdout(sys.stderr):
            _run(prog, about, commands, ["--help"])
        return EXIT_USAGE
    except UserError as error:
        print("gb10: error: " + "\n".join(map(printable, str(error).split("\n"))), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`gb10 routing | head`). Not an error of ours.
        _drop_output()
        return 0
    except OSError as error:
        # What names a file is a command's own fault; the output has no name.
        if error.filename is not None or error.errno not in _FULL:
            raise
        _drop_output()
        print(f"gb10: error: the output cannot be written: {error.strerror}", file=sys.stderr)
        return EXIT_USAGE


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What writing to a disk, or to a terminal that is gone, ends with."""


def _open_streams() -> None:
    """Give the null device to what the caller closed (``>&-``): else the next file gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123 (for the whole process)


def _drop_output() -> None:
    """Else Python writes what is left when it ends, and fails again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def printable(text: str) -> str:
    """A stranger's text, a file's or a server's: nothing of it steers the terminal or begins a line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def unset_empty(environment: MutableMapping[str, str]) -> None:
    """Take out what is empty: compose files pass variables on so (``${NAME:-}``), and nobody means that.

    An empty list of visible devices says something: no GPU.
    """
    for name in [name for name, value in environment.items() if not value]:
        if not name.endswith("_VISIBLE_DEVICES"):
            del environment[name]


def _run(prog: str, about: str, commands: Mapping[str, Command], arguments: list[str]) -> int:
    name, *rest = ["--help"] if arguments[0] == "help" else arguments
    if name not in commands and not name.startswith("-"):
        close = difflib.get_close_matches(name, commands, n=1, cutoff=0.7)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"no command named {name!r}; {hint}the commands are: {', '.join(commands)}")
    if name in commands and commands[name].passed_on:
        return commands[name].load()(rest)
    app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=_HELP)
    app.callback(help=about)(_options)
    for other, entry in commands.items():
        if other == name:
            app.command(other)(entry.load())
        else:
            app.command(other, help=entry.summary)(_elsewhere)
    group = get_group(app)
    if name in commands:
        parameters = group.commands[name].params
        rest = spread(rest, {option for one in parameters if one.multiple for option in one.opts})
    try:
        with group.make_context(prog, [name, *rest]) as context:
            return int(group.invoke(context))
    except typer.Exit as done:
        return done.exit_code
    except typer.TyperException as error:
        message = " ".join(error.format_message().split())
        path = f"{prog} {name}" if name in commands else prog
        raise UserError(f"{message} (see: {path} --help)") from None


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"gb10 {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options of the group itself."""


def _elsewhere() -> None:
    """Stands for a command in the list of them."""


def spread(arguments: Sequence[str], several: Collection[str]) -> list[str]:
    """``--draft 4 2 1`` as ``--draft 4 --draft 2 --draft 1``, for the options that take several values."""
    result: list[str] = []
    option = ""
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument in several else ""
        elif option and result[-1] != option:
            result.append(option)
        result.append(argument)
    return result


def whole(least: int) -> Callable[[Any], int]:
    """A parser for typer of whole numbers of ``least`` or more."""

    def parse(given: Any) -> int:
        text = str(given)
        # Other digits than ASCII's are decimal as well, and no number of digits is too large for that.
        if not re.fullmatch("[0-9]{1,19}", text) or int(text) < least:
            raise typer.BadParameter(f"{text!r} is not a whole number of {least} or more")
        return int(text)

    return parse


def json_object(flag: str, text: str) -> dict[str, Any]:
    """The value of ``flag``. Raises UserError when it is no JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{flag} {text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{flag} {text!r} is not a JSON object")
    return value
