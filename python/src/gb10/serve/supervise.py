"""Run vLLM as a child, wait until it answers, pass signals on, and leave no process behind."""

import contextlib
import ctypes
import errno
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

import psutil  # type: ignore[import-untyped, unused-ignore]

from gb10.errors import ServerFailed, UserError
from gb10.serve import progress

TERM_GRACE = 6.0
"""Seconds that vLLM gets after SIGTERM before it is killed. Killing takes well under a second more."""

_KILL_WAIT = 2.0
_KEPT_LOGS = 20
_PR_SET_CHILD_SUBREAPER = 36
_POLL = 0.2
_FIRST_TOKEN_LIMIT = 300.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def check_port(host: str, port: int) -> None:
    """Raise UserError when nobody could listen on ``host``:``port``."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        reason = error.strerror or error
        text = f"cannot listen on {host} port {port}: {reason}; give an address of this machine"
        if error.errno == errno.EADDRINUSE:
            text = f"port {port} on {host} is in use; choose another with --port N (or PORT=N)"
        elif error.errno == errno.EACCES:
            text = f"port {port} needs root; choose one from 1024 on with --port N (or PORT=N)"
        raise UserError(text) from None


def open_log(folder: Path) -> tuple[Path, IO[bytes]]:
    """A new log file; the oldest beyond twenty are removed. Falls back to the temporary folder."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / name).open("xb")
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="gb10-serve-"))
        file = (folder / name).open("xb")
    for old in sorted(folder.glob("*.log"))[:-_KEPT_LOGS]:
        old.unlink(missing_ok=True)
    return folder / name, file


def family(root: int) -> list[int]:
    """Living processes of ``root``'s session and all descendants of ``root`` and of those, zombies left out.

    Orphans are found too: they become our children (we are a subreaper) and keep their session.
    """
    members, parents, living = {root}, {}, []
    for process in psutil.process_iter(["ppid", "status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(process.pid) == root:
                members.add(process.pid)
            parents[process.pid] = process.info["ppid"]
            if process.info["status"] not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                living.append(process.pid)
    while more := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= more
    return [pid for pid in living if pid in members]


class Server:
    """vLLM in a session of its own with ``environment``, its log in a file in ``logs``.

    ``stop`` ends it; it is safe to call twice. ``stopping`` is set once a signal asked for the end.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        logs: Path,
        *,
        verbose: bool = False,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.log_path, log = open_log(logs)
        self.stopping: int | None = None
        self._verbose = verbose
        self._tail: deque[str] = deque(maxlen=400)
        self._partial = b""
        self._offset = 0
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        # vLLM leaves sockets and files in the temporary folder; this one goes with the server.
        self._scratch = tempfile.TemporaryDirectory(prefix="gb10-serve-", ignore_cleanup_errors=True)
        variables = {
            **environment,
            "TMPDIR": self._scratch.name,
            "PYTHONUNBUFFERED": "1",
            "GB10_SERVE_PARENT": str(os.getpid()),
        }
        with log:
            self._process = subprocess.Popen(
                command,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=pass_fds,
            )

    @property
    def exit_code(self) -> int | None:
        """Exit status of vLLM, None while it runs."""
        return self._process.poll()

    def handle_signals(self) -> None:
        """Let SIGTERM, SIGINT and SIGHUP ask for the end; a second one kills at once."""

        def on_signal(number: int, _frame: FrameType | None) -> None:
            if self.stopping is not None:
                self._kill()
            self.stopping = number

        for number in _SIGNALS:
            signal.signal(number, on_signal)

    def new_lines(self) -> Iterator[str]:
        """Lines that vLLM wrote since the last call. With ``verbose`` they are printed as well."""
        with contextlib.suppress(OSError), self.log_path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
            self._offset += len(data)
            *whole, self._partial = (self._partial + data).replace(b"\r", b"\n").split(b"\n")
            for raw in whole:
                line = raw.decode(errors="replace")
                self._tail.append(line)
                if self._verbose:
                    print(line, flush=True)
                yield line

    def failure(self, doing: str) -> ServerFailed:
        """The one line that says why vLLM ended."""
        deque(self.new_lines(), maxlen=0)
        lines = [*self._tail, self._partial.decode(errors="replace")]
        code = self.exit_code
        how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit status {code}"
        if code == -signal.SIGKILL:
            how += ", perhaps out of memory"
        reason = progress.last_error(lines) or progress.last_line(lines) or "no message"
        return ServerFailed(f"vLLM ended while {doing} ({how}): {reason} [full log: {self.log_path}]")

    def wait_ready(self, url: str, key: str | None, show: progress.Progress) -> str | None:
        """Wait until vLLM answers, drawing progress; the name of the first served model.

        Ready means: /health is 200, /v1/models lists a model, and one token was generated (MTP can
        kill the engine after /health is green). None when a signal asked for the end. Raises
        ServerFailed when vLLM ends.
        """
        waiting = _Probe(url, key)
        try:
            while self.stopping is None:
                for line in self.new_lines():
                    show.feed(line)
                if waiting.listed:
                    show.stage = progress.FIRST_TOKEN_STAGE
                if not self._verbose:
                    show.beat()
                if self.exit_code is not None:
                    show.clear()
                    raise self.failure("loading")
                if waiting.done.wait(_POLL / 2):
                    show.clear()
                    if waiting.error is not None:
                        raise ServerFailed(
                            f"vLLM is up and does not answer: {waiting.error} [full log: {self.log_path}]"
                        )
                    return waiting.model
        finally:
            waiting.stop()
        show.clear()
        return None

    def wait(self) -> None:
        """Wait until a signal asks for the end. Raises ServerFailed when vLLM ends by itself."""
        while self.stopping is None:
            deque(self.new_lines(), maxlen=0)
            try:
                self._process.wait(_POLL)
            except subprocess.TimeoutExpired:
                continue
            if self.stopping is None:
                raise self.failure("serving")

    def _kill(self) -> None:
        for pid in family(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        """Collect dead children: vLLM, and its orphans that the kernel gave to us."""
        self._process.poll()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def stop(self) -> None:
        """End vLLM and everything it started: SIGTERM, then SIGKILL after ``TERM_GRACE`` seconds."""
        if self.exit_code is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(TERM_GRACE)
        # vLLM's children follow it; what is left after a moment, or after the grace, is killed.
        deadline = time.monotonic() + (1.0 if self.exit_code is not None else 0.0)
        while time.monotonic() < deadline and family(self._process.pid):
            self._reap()
            time.sleep(0.05)
        deadline = time.monotonic() + _KILL_WAIT
        while family(self._process.pid) and time.monotonic() < deadline:
            self._kill()
            self._reap()
            time.sleep(0.05)
        self._reap()
        self._scratch.cleanup()


class _Probe:
    """A thread that asks the server until it answers. ``done`` is set at the end of it."""

    def __init__(self, url: str, key: str | None) -> None:
        self.done = threading.Event()
        self.listed = False
        self.model: str | None = None
        self.error: str | None = None
        self._stop = threading.Event()
        self._url = url
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if key else {}
        )
        # Our own child on our own address, with a certificate that need not name it. Never through a proxy.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        """Let the thread end."""
        self._stop.set()

    def _ask(self, path: str, body: dict[str, Any] | None = None, limit: float = 5.0) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data=data, headers=self._headers)
        with self._opener.open(request, timeout=limit) as answer:
            content: bytes = answer.read()
            return content

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if not self.listed:
                    self._ask("/health")
                    self.model = str(json.loads(self._ask("/v1/models"))["data"][0]["id"])
                    self.listed = True
                self._first_token()
            except urllib.error.HTTPError as error:
                if self.listed:
                    self.error = f"HTTP {error.code} {error.read(300).decode(errors='replace')}"
                    self.done.set()
                    return
            except (OSError, http.client.HTTPException, ValueError, LookupError):
                pass
            else:
                self.done.set()
                return
            self._stop.wait(_POLL)

    def _first_token(self) -> None:
        """Generate one token. A model that cannot (embeddings) answers 400 or 404, which is an answer."""
        body = {"model": self.model, "prompt": "1", "max_tokens": 1, "temperature": 0}
        try:
            self._ask("/v1/completions", body, _FIRST_TOKEN_LIMIT)
        except urllib.error.HTTPError as error:
            if error.code not in (http.HTTPStatus.BAD_REQUEST, http.HTTPStatus.NOT_FOUND):
                raise
