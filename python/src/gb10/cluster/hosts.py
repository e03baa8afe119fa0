"""Hosts that something is run on: this one, or one that OpenSSH's client reaches."""

import contextlib
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gb10.errors import UserError
from gb10.serve.words import one_line

HERE = "here"
"""Names the machine that the command runs on; no ssh is needed for it."""

ASK_LIMIT = 30.0
"""Seconds for an answer."""

_FAILED = 255
"""ssh's own exit status."""

_OPTIONS = {
    # No question that nobody reads.
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ControlMaster": "auto",
    "ControlPersist": "30",
    "ForwardX11": "no",
    "ForwardAgent": "no",
    "ClearAllForwardings": "yes",
    "RequestTTY": "no",
    "LogLevel": "ERROR",
}

TETHER = r"""
# Runs a command that ends when its caller is gone: standard input is a line with the API key, then lines to
# show that somebody is there.
limit=$1
shift
IFS= read -r key || exit 1
[ -z "$key" ] || export VLLM_API_KEY="$key"
exec 3<&0
"$@" </dev/null 3<&- &
child=$!
end() { kill -TERM "$child" 2>/dev/null; }
trap end TERM INT HUP
(
  trap - TERM INT HUP
  while IFS= read -r -t "$limit" _ <&3; do :; done
  end
) >/dev/null 2>&1 &
watcher=$!
exec 3<&-
# A signal ends the first wait.
wait "$child"
status=$?
while kill -0 "$child" 2>/dev/null; do
  wait "$child"
  status=$?
done
kill "$watcher" 2>/dev/null
exit "$status"
"""


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    status: int
    out: str
    error: str


class Host(Protocol):
    """Where commands run."""

    name: str

    def ask(self, script: str, *arguments: str) -> Answer:
        """Run a script of the Bourne shell to its end. Raises UserError where the host cannot be asked."""
        ...

    def start(self, command: Sequence[str], limit: float) -> "subprocess.Popen[bytes]":
        """Start a command, tethered: it ends when nothing was written to it for ``limit`` seconds.

        The first line is for the API key, and may be empty. Both outputs are one pipe.
        """
        ...


def _tethered(command: Sequence[str], limit: float) -> list[str]:
    return ["bash", "-c", TETHER, "gb10-tether", f"{limit:g}", *command]


def _started(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    # A session of its own: ^C in the terminal is for us alone.
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _asked(name: str, command: Sequence[str], script: str) -> Answer:
    try:
        done = subprocess.run(
            command, input=script.encode(), capture_output=True, timeout=ASK_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{name} does not answer within {ASK_LIMIT:.0f} s") from None
    except OSError as error:
        raise UserError(f"cannot run {command[0]}: {error.strerror or error}") from None
    return Answer(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


class Local:
    """This machine."""

    name = HERE

    def ask(self, script: str, *arguments: str) -> Answer:
        """As `Host.ask`."""
        return _asked(self.name, ["sh", "-s", "--", *arguments], script)

    def start(self, command: Sequence[str], limit: float) -> "subprocess.Popen[bytes]":
        """As `Host.start`."""
        return _started(_tethered(command, limit))


class Ssh:
    """A host that ssh knows by this name; one connection for all that is asked of it."""

    def __init__(self, name: str, sockets: Path, config: Path | None) -> None:
        self.name = name
        options = _OPTIONS | {"ControlPath": str(sockets / "%C")}
        self._command = [
            "ssh",
            *(["-F", str(config)] if config is not None else []),
            *(word for key, value in options.items() for word in ("-o", f"{key}={value}")),
        ]

    def ask(self, script: str, *arguments: str) -> Answer:
        """As `Host.ask`."""
        # sshd joins the words and gives them to the user's shell.
        words = shlex.join(["sh", "-s", "--", *arguments])
        answer = _asked(self.name, [*self._command, "--", self.name, words], script)
        if answer.status == _FAILED:
            said = one_line(answer.error) or "it says nothing"
            raise UserError(f"ssh {self.name}: {said} (gb10 asks no question: keys must do, see man ssh)")
        return answer

    def start(self, command: Sequence[str], limit: float) -> "subprocess.Popen[bytes]":
        """As `Host.start`."""
        words = shlex.join(_tethered(command, limit))
        return _started([*self._command, "--", self.name, words])

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                [*self._command, "-O", "exit", "--", self.name], capture_output=True, timeout=5, check=False
            )


@contextmanager
def hosts(names: Sequence[str], config: Path | None) -> Iterator[list[Host]]:
    """The hosts of these names. Raises UserError where ssh is missing, or a name is none."""
    if any(name != HERE for name in names) and shutil.which("ssh") is None:
        raise UserError("ssh is not installed here; install OpenSSH's client (openssh-client)")
    if config is not None and not config.is_file():
        raise UserError(f"--ssh-config {config} is no file")
    for name in names:
        if not name or name.startswith("-") or not name.isprintable() or " " in name:
            raise UserError(f"{name!r} is no name of a host")
    # A socket's path has room for 104 bytes, and ssh appends 17 to this one while it makes it.
    with tempfile.TemporaryDirectory(prefix="gb10-ssh-") as folder:
        made: list[Host] = [
            Local() if name == HERE else Ssh(name, Path(folder), config) for name in dict.fromkeys(names)
        ]
        try:
            yield made
        finally:
            for host in made:
                if isinstance(host, Ssh):
                    host.close()
