"""What commands write into a pipe and onto a terminal, to the byte: colours, control characters, width."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from types import MappingProxyType

import pytest

COMMANDS = (
    "--help",
    "--version",
    "nothing",
    "serve --help",
    "serve /does/not/exist",
    "cluster --help",
    "cluster plan",
    "recipes list",
    "recipes show nothing",
    "recipes check nothing",
    "audit --help",
    "audit /does/not/exist",
    "doctor",
    "doctor --json",
    "bench --help",
    "bench measure http://127.0.0.1:9",
    "bench compare /does/not/exist",
    "routing",
    "routing --capability 12.1",
    "predict --help",
    "predict /does/not/exist",
    "sparse24 --help",
)
COLOURED = {"doctor"}
"""Those with colours on a terminal."""

TABLES = {"recipes list": 40, "routing": 60, "routing --capability 12.1": 60, "serve --help": 60}
"""The widest line on a terminal of 40 columns: a table's least width, where it has one."""

_COLOUR = re.compile(rb"\x1b\[[0-9;]*m")


def _environ(extra: Mapping[str, str]) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "TERM")}
    return {**plain, "GB10_PROFILE": "cpu", **extra}


def _argv(command: str) -> list[str]:
    return [sys.executable, "-m", "gb10", *command.split()]


def on_terminal(
    command: str, columns: int = 80, variables: Mapping[str, str] = MappingProxyType({})
) -> bytes:
    """What a command writes onto a terminal, without what that adds to line ends."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environ = _environ({"TERM": "xterm", **variables})
    process = subprocess.Popen(_argv(command), stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    written = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while data := terminal.read(1 << 16):
                written += data
        except OSError:
            # So a terminal ends that nobody writes to any more.
            pass
    assert process.wait(60) in (0, 1, 2)
    return written.replace(b"\r\n", b"\n")


def control(written: bytes) -> set[int]:
    """Control characters but line ends."""
    return {byte for byte in written if byte < 32 or byte == 127} - {10}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pipe_gets_text_alone(command: str) -> None:
    done = subprocess.run(
        _argv(command), capture_output=True, env=_environ({"TERM": "xterm"}), timeout=120, check=False
    )
    assert done.stdout + done.stderr
    assert control(done.stdout + done.stderr) == set()
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_terminal_gets_colours_where_they_are_wanted(command: str) -> None:
    written = on_terminal(command)
    assert bool(_COLOUR.search(written)) is (command in COLOURED)
    assert control(_COLOUR.sub(b"", written)) == set()


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_colour_is_none(command: str, variables: dict[str, str]) -> None:
    assert control(on_terminal(command, variables=variables)) == set()


@pytest.mark.parametrize(("command", "least"), TABLES.items())
def test_a_narrow_terminal(command: str, least: int) -> None:
    lines = on_terminal(command, 40).decode().splitlines()
    assert len(lines) > 5
    assert max(map(len, lines)) <= least


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ("--version",)])
def test_a_reader_that_goes_away_is_no_error(command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        done = subprocess.run(
            _argv(command), stdout=gone, stderr=subprocess.PIPE, env=_environ({}), timeout=120, check=False
        )
    assert done.returncode in (0, 1, 2)
    errors = done.stderr.decode()
    assert "Traceback" not in errors and "Broken" not in errors and "Exception ignored" not in errors
