"""Two servers on one machine in turns: A, B, A, B. Each is started, measured and ended before the next."""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import psutil  # type: ignore[import-untyped, unused-ignore]

from gb10.bench import target
from gb10.bench.measure import Plan
from gb10.bench.measure import run as measure
from gb10.bench.results import Result, merged
from gb10.bench.words import told
from gb10.errors import UserError
from gb10.units import parse_whole

PORT = 8000
"""Where vLLM and gb10 listen unless they are told."""
_POLL = 0.5
_PATIENCE = 60.0
"""Seconds in which a server must end by itself after SIGTERM."""
_TAIL = 4096


@dataclass(frozen=True)
class Server:
    """A command that serves. ``name`` is A or B."""

    name: str
    words: tuple[str, ...]
    port: int

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"


def server(name: str, command: str) -> Server:
    """Of the words of a command. Raises UserError when it cannot be started."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"{name}'s command {command!r} cannot be read: {error}") from None
    if not words:
        raise UserError(
            f"{name} has no command; gb10 bench run --against 'vllm serve MODEL' -- gb10 serve MODEL"
        )
    if shutil.which(words[0]) is None:
        raise UserError(f"{name}'s command {words[0]!r} is no program here; give its path, or install it")
    return Server(name, tuple(words), _port(name, words))


def _port(name: str, words: Sequence[str]) -> int:
    """The last --port of a command."""
    found = str(PORT)
    for at, word in enumerate(words):
        if word == "--port" and at + 1 < len(words):
            found = words[at + 1]
        elif word.startswith("--port="):
            found = word.partition("=")[2]
    try:
        port = parse_whole(found)
    except ValueError:
        port = 0
    if not 0 < port < 1 << 16:
        raise UserError(f"{name}'s --port {found!r} is none between 1 and 65535")
    return port


def _taken(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex(("127.0.0.1", port)) == 0


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log.read_bytes()[-_TAIL:].decode(errors="replace").split("\n")
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it wrote nothing")
    return "it wrote nothing"


@contextmanager
def _started(one: Server, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The server's process, with a group of its own that is ended at the end."""
    if _taken(one.port):
        raise UserError(
            f"port {one.port} is taken before {one.name} starts; end what listens, or give --port"
        )
    process = None
    try:
        # A signal must not come between the start and what ends it.
        with _put_off(), log.open("ab") as out:
            process = subprocess.Popen(
                one.words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        yield process
    finally:
        if process is not None:
            with _put_off() as came:
                _end(process, one, came)


def _group_lives(group: int) -> bool:
    """Whether a process of it runs. In a container without an init, ended ones stay as zombies."""
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _end(process: "subprocess.Popen[bytes]", one: Server, came: Sequence[int]) -> None:
    """SIGTERM to its group, SIGKILL to what is there after a minute: the next one needs the memory.

    ``came``: signals since it began; with one it is SIGKILL at once.
    """
    for number, patience in ((signal.SIGTERM, _PATIENCE), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        end = time.monotonic() + patience
        while time.monotonic() < end and not (came and number == signal.SIGTERM):
            process.poll()
            if not _group_lives(process.pid):
                return
            time.sleep(0.1)
    print(f"gb10: {one.name}'s processes did not end", file=sys.stderr)


def _ready(
    one: Server,
    process: "subprocess.Popen[bytes]",
    log: Path,
    find: Callable[[str], target.Target],
    limit: float,
) -> target.Target:
    """Wait until it answers. Raises UserError when it ends, or takes longer than ``limit`` seconds."""
    end = time.monotonic() + limit
    while True:
        if (status := process.poll()) is not None:
            raise UserError(
                f"{one.name}'s server ended with status {status} before it answered: {_last_line(log)}; "
                "--logs FOLDER keeps its output"
            )
        try:
            return find(one.url)
        except target.NotReadyError:
            if time.monotonic() > end:
                raise UserError(
                    f"{one.name}'s server does not answer at {one.url} after {limit:g} s: {_last_line(log)}; "
                    "--start-limit SECONDS waits longer, --logs FOLDER keeps its output"
                ) from None
        time.sleep(_POLL)


def turns(
    servers: Sequence[Server],
    plan: Plan,
    *,
    rounds: int,
    find: Callable[[str], target.Target],
    logs: Path,
    limit: float,
) -> list[Result]:
    """A result for each server, of ``rounds`` starts of each. Raises UserError when one fails."""
    found: dict[str, list[Result]] = {one.name: [] for one in servers}
    with _interrupted_by_signals():
        for number in range(1, rounds + 1):
            for one in servers:
                command = told(shlex.join(one.words))
                print(f"turn {number} of {one.name}: {command}", file=sys.stderr, flush=True)
                log = logs / f"{one.name}-{number}.log"
                began = time.monotonic()
                with _started(one, log) as process:
                    answered = _ready(one, process, log, find, limit)
                    seconds = round(time.monotonic() - began, 1)
                    print(f"{one.name} answers after {seconds:g} s", file=sys.stderr, flush=True)
                    made = measure(answered, plan)
                turn = {"turn": number, "command": command, "start_seconds": seconds}
                found[one.name].append(replace(made, turns=(turn,)))
    return [merged(results) for results in found.values()]


@contextmanager
def _handled(
    numbers: Sequence[signal.Signals], handle: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Signals go to ``handle``, but for those that are ignored (nohup)."""
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """SIGTERM, and a terminal that is closed, end the server too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled((signal.SIGTERM, signal.SIGHUP), interrupt):
        yield


@contextmanager
def _put_off() -> Iterator[list[int]]:
    """Signals that come meanwhile, which interrupt when the block has ended."""
    came: list[int] = []
    with _handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), lambda number, _: came.append(number)):
        yield came
    if came:
        raise KeyboardInterrupt
