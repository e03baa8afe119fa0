"""A host as a place where a shell runs: over OpenSSH, or on this machine."""

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gb10.errors import UserError

_SSH_FAILED = 255
_OPTIONS = {
    # Nobody is there to type: keys or an agent.
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    # A connection over a network that is cut ends after 15 s.
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    # Each node has a connection of its own, which ends with it and with nothing else.
    "ControlMaster": "no",
    "ControlPath": "none",
}


class Host(Protocol):
    """Where a node runs."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    def ask(self, script: str, *, timeout: float) -> str:
        """What a script of POSIX shell prints there. Raises UserError when it cannot be run in time."""

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """Start a line of shell; input and output are pipes, errors go into the output."""


def _spawn(words: Sequence[str]) -> subprocess.Popen[bytes]:
    """In a session of its own: a Ctrl-C at our terminal is ours to pass on."""
    return subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def last_line(text: str) -> str:
    """The last line that says something, or nothing."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _ask(name: str, words: Sequence[str], script: str, timeout: float) -> str:
    """``script`` goes in by standard input, so that no shell in between reads it as its own language."""
    try:
        done = subprocess.run(
            words,
            input=script,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{name}: no answer within {timeout:.0f} s") from None
    except OSError as error:
        raise UserError(f"{name}: {words[0]} cannot be run: {error.strerror}") from None
    if done.returncode == _SSH_FAILED:
        raise UserError(f"{name}: ssh failed: {last_line(done.stderr) or 'it does not say why'}")
    if done.returncode:
        said = last_line(done.stderr) or "it does not say why"
        raise UserError(f"{name}: a shell there ended with status {done.returncode}: {said}")
    return done.stdout


@dataclass(frozen=True)
class Ssh:
    """A host by the name that ssh knows. ``client``: the words that start ssh."""

    name: str
    client: tuple[str, ...] = ("ssh",)

    def _words(self, command: str) -> list[str]:
        options = [word for key, value in _OPTIONS.items() for word in ("-o", f"{key}={value}")]
        return [*self.client, "-T", *options, "--", self.name, command]

    def ask(self, script: str, *, timeout: float) -> str:
        """See `Host`."""
        return _ask(self.name, self._words("sh -s"), script, timeout)

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """See `Host`."""
        return _spawn(self._words(command))


@dataclass(frozen=True)
class Local:
    """This machine, without ssh; ``inside`` are words before the shell (``ip netns exec NAME``)."""

    name: str = "this machine"
    inside: tuple[str, ...] = ()

    def ask(self, script: str, *, timeout: float) -> str:
        """See `Host`."""
        return _ask(self.name, [*self.inside, "sh", "-s"], script, timeout)

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """See `Host`."""
        return _spawn([*self.inside, "sh", "-c", command])


def of(name: str, client: str) -> Host:
    """The host that a user names; ``localhost`` needs no ssh. ``client``: a command line that starts ssh."""
    if name == "localhost":
        return Local(name)
    try:
        words = tuple(shlex.split(client))
    except ValueError as error:
        raise UserError(f"--ssh {client!r} cannot be split into words: {error}") from None
    if not words:
        raise UserError("--ssh is empty; it is the command that starts ssh")
    return Ssh(name, words)
