"""Command line: `python -m gb10_lab serve-check MODEL --out FOLDER`: `gb10 serve` from start to SIGTERM."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shlex import split
from typing import Annotated, Any

from typer import Argument, Option

from gb10.arguments import whole
from gb10.errors import EXIT_FAILED
from gb10.files import write_json
from gb10_lab import record
from gb10_lab.engine_bench import compilers

PROMPT = "def connect(host, port, timeout=None):\n"
TOGETHER = 24
"""Requests at a time: more than one launch for decode takes."""
TOKENS = 24
STOP_LIMIT = 15.0
_SHARED = Path("/dev/shm")
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl
_MARK = "SERVE_CHECK"
_OWN = ("GB10_CACHES", "GB10_COMMIT", "GB10_EACH", "GB10_PACK", "GB10_SITE")
"""Variables of lab/gpu's scripts, which `gb10 serve` refuses as unknown."""


def run(
    model: Annotated[str, Argument(metavar="MODEL", help="what to serve")],
    out: Annotated[Path, Option(metavar="FOLDER", help="NAME.json and NAME.log go there")],
    name: Annotated[str, Option("--name", metavar="NAME", help="name of the files")] = "serve",
    port: Annotated[int, Option(parser=whole(1), metavar="N", help="port to listen on")] = 18200,
    serve: Annotated[str, Option("--serve", metavar="WORDS", help="more arguments of gb10 serve")] = "",
    ran: Annotated[
        list[str] | None, Option("--ran", metavar="KERNEL...", help="kernels that must have run")
    ] = None,
    compiles: Annotated[
        bool, Option(help="whether the start may compile; else a compiler that runs is a failure")
    ] = True,
    limit: Annotated[float, Option(metavar="SECONDS", help="for the start, until it is ready")] = 120.0,
) -> int:
    """Start `gb10 serve`, ask it, look at what ran, end it with SIGTERM, and look for what it left behind.

    The exit status is 1 when something is not as it should be; the record says what.
    """
    out.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "schema": 1,
        "date": record.today(),
        "command": record.command(),
        "failures": [],
    }
    failures: list[str] = content["failures"]
    # All that comes of the server has it, whoever its parent is.
    mark = uuid.uuid4().hex
    environ = {key: value for key, value in os.environ.items() if key not in _OWN} | {_MARK: mark}
    before = set(_SHARED.iterdir())
    with (
        _ending(f"{_MARK}={mark}"),
        (out / f"{name}.log").open("w", encoding="utf-8") as log,
        compilers.watched(f"{_MARK}={mark}") as compiled,
    ):
        words = [model, "--port", str(port), *split(serve)]
        server = _Server(words, environ, f"{_MARK}={mark}", log)
        with contextlib.closing(server):
            try:
                content["start"] = {"ready_seconds": server.ready(limit)}
                _ask(f"http://127.0.0.1:{port}", server, content)
            except _Wrong as wrong:
                failures.append(str(wrong))
            failures += _live(environ, ran or [], content)
            content["stop"] = server.stop(signal.SIGTERM)
    content["compiled"] = compiled.content()
    content["lines"] = server.lines
    failures += _left(server, content["stop"], before, port)
    failures += [f"the routing table differs: {line}" for line in server.after_ready]
    if not compiles and (compiled.programs or compiled.files):
        failures.append(f"compiled: {dict(compiled.programs)} {dict(compiled.files)}")
    write_json(out / f"{name}.json", content)
    print(json.dumps({key: content[key] for key in content if key not in ("command", "lines")}, indent=1))
    return EXIT_FAILED if failures else 0


@contextlib.contextmanager
def _ending(mark: str) -> Iterator[None]:
    """End what was started with ``mark`` with the block, also by a signal: it would keep the GPU's memory.

    A time limit around this sends its signal to us and to our group, so that it comes twice.
    """
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def end(*_: object) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        sys.exit(EXIT_FAILED)

    before = {number: signal.signal(number, end) for number in signals}
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        _kill(mark)
        for number, handler in before.items():
            signal.signal(number, handler)


def _family(mark: str) -> set[int]:
    """The processes that were started with ``mark``."""
    return {pid for pid in compilers.processes() if compilers.marked(pid, mark)}


def _kill(mark: str) -> None:
    for pid in _family(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _with_its_parent() -> None:
    """In the child: SIGTERM when its parent dies, which SIGKILL leaves no time for anything."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class _Wrong(Exception):
    """Something that is not as it should be, after which nothing more can be asked."""


class _Server:
    """A running `gb10 serve` in a session of its own; ``lines`` is what it said, each after its seconds."""

    def __init__(self, arguments: Sequence[str], environ: dict[str, str], mark: str, log: Any) -> None:
        self.lines: list[str] = []
        self._mark = mark
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gb10", "serve", *arguments],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_with_its_parent,
        )
        self._reader = threading.Thread(target=self._read, args=(log,), daemon=True)
        self._reader.start()

    def _read(self, log: Any) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(f"{self.seconds:6.1f} {line.rstrip()}")
            print(self.lines[-1], file=log, flush=True)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def _at(self, word: str) -> int | None:
        return next((at for at, line in enumerate(self.lines) if line[7:].startswith(word)), None)

    @property
    def after_ready(self) -> list[str]:
        """What it said between being ready and what to try: where the routing table differs."""
        ready, tried = self._at("ready after"), self._at("try it")
        return [] if ready is None or tried is None else [line[7:] for line in self.lines[ready + 1 : tried]]

    def ready(self, limit: float) -> float:
        """Seconds until it said so. Raises _Wrong when it ended, or after ``limit`` seconds."""
        while self._at("try it") is None:
            if self._process.poll() is not None:
                raise _Wrong(f"it ended with status {self._process.returncode}: {self.lines[-3:]}")
            if self.seconds > limit:
                raise _Wrong(f"not ready after {limit:.0f} s: {self.lines[-3:]}")
            time.sleep(0.05)
        return round(self.seconds, 1)

    def stop(self, number: int) -> dict[str, Any]:
        """Send a signal and wait for the end; how that went."""
        began, ran = time.monotonic(), len(_family(self._mark))
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            status: int | str = self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            status = f"none after {STOP_LIMIT:.0f} s"
        seconds, names = round(time.monotonic() - began, 2), sorted(map(compilers.name, _family(self._mark)))
        self.close()
        return {"processes": ran, "status": status, "seconds": seconds, "left": names}

    def close(self) -> None:
        """End what is left of it at once."""
        _kill(self._mark)
        self._process.wait()
        self._reader.join(5)


def _request(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read().decode()
    return json.loads(text) if text else None


def _ask(url: str, server: _Server, content: dict[str, Any]) -> None:
    """Ask one request, the same again, and many at a time. Raises _Wrong."""
    try:
        name = _request(f"{url}/v1/models")["data"][0]["id"]
        asked = {"model": name, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}

        def complete(number: int) -> str:
            text: str = _request(f"{url}/v1/completions", asked | {"seed": number})["choices"][0]["text"]
            return text

        first = complete(0)
        content["start"]["first_answer_seconds"] = round(server.seconds, 1)
        content["answer"] = first
        again = complete(0)
        with ThreadPoolExecutor(TOGETHER) as pool:
            texts = list(pool.map(complete, range(TOGETHER)))
        _request(f"{url}/health")
    except (OSError, ValueError, LookupError) as error:
        raise _Wrong(f"it did not answer: {error!r}") from error
    content["together"] = {"requests": TOGETHER, "same as alone": sum(text == first for text in texts)}
    if not first.strip():
        raise _Wrong("an empty answer")
    if again != first:
        raise _Wrong(f"the same request got {again!r} after {first!r}")


def _live(environ: dict[str, str], ran: Sequence[str], content: dict[str, Any]) -> list[str]:
    """What `gb10 routing --live` says; what is wrong with that."""
    done = subprocess.run(
        [sys.executable, "-m", "gb10", "routing", "--live", "--json"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        return [f"gb10 routing --live: status {done.returncode}, {done.stderr.strip()}"]
    servers = json.loads(done.stdout)
    content["live"] = [one for server in servers for one in server["ran"]]
    kernels = {one["kernel"] for one in content["live"]}
    return [f"{kernel} did not run" for kernel in ran if f"gb10 {kernel}" not in kernels]


def _left(server: _Server, stop: dict[str, Any], before: set[Path], port: int) -> list[str]:
    """What the server left behind."""
    wrong = [] if stop["status"] == 0 else [f"SIGTERM: exit status {stop['status']}"]
    wrong += [f"processes live on: {', '.join(stop['left'])}"] if stop["left"] else []
    if segments := sorted(path.name for path in set(_SHARED.iterdir()) - before):
        wrong.append(f"shared memory: {', '.join(segments)}")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            wrong.append(f"port {port} still answers")
    return wrong
