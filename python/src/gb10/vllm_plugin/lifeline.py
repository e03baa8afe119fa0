"""vLLM's forked processes die with their parent, and what became of each process is written down.

Processes of Python's multiprocessing only, which is how vLLM starts its engine core and its workers. A worker
holds the sockets and pipes by which others would notice that the engine core is gone, and goes on loading; so
the kernel is asked for SIGKILL at its parent's death. (The kernel means the thread that forked: a process
that another than the main thread started is left alone. `gb10.serve.keeper` ends all that is left in any
case.)

Who waits for a process learns its exit status, and vLLM often logs a consequence instead. So each status goes
as a line of JSON into the file that GB10_SERVE_DEATHS names, and so does each signal that vLLM sends itself.

Shared memory gets names by which it can be removed when all is over (`gb10.segments`).
"""

import ctypes
import os
import secrets
import signal
import threading
import time
from multiprocessing import connection, popen_fork, process, shared_memory, util
from pathlib import Path
from typing import Any

from gb10 import deaths, segments

ENV_NAME = "GB10_SERVE_DEATHS"

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl
_by_main_thread = False
_DYING = 0.5
"""Seconds that a process may take from closing its files to its exit status."""


def _write(event: dict[str, object]) -> None:
    if file := os.environ.get(ENV_NAME):
        deaths.record(file, event)


def _follow_parent(_: object) -> None:
    """In a process that multiprocessing forked: end when the parent does."""
    parent = process.parent_process()
    if parent is None or not _by_main_thread:
        return
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent.pid:
        os._exit(0)


def _is_ending(popen: Any) -> bool:
    """Whether a process has closed its end of the pipe that tells of its end, and is worth waiting for."""
    sentinel = getattr(popen, "sentinel", None)
    if sentinel is None or getattr(popen, "gb10_waited", False):
        return False
    return bool(connection.wait([sentinel], 0))


def install() -> None:
    """Change multiprocessing in this process, and with it in those that it forks. Once is enough."""
    popen: Any = popen_fork.Popen
    if ENV_NAME not in os.environ or hasattr(popen, "gb10_original"):
        return
    begin, poll, send = popen.gb10_original = (popen.__init__, popen.poll, popen._send_signal)

    def __init__(self: Any, process_obj: Any) -> None:
        global _by_main_thread
        _by_main_thread = threading.current_thread() is threading.main_thread()
        self.gb10_name = process_obj.name
        begin(self, process_obj)

    def watched_poll(self: Any, flag: int = os.WNOHANG) -> int | None:
        before = self.returncode
        code: int | None = poll(self, flag)
        # A process closes its files before it has an exit status: who was woken by that asks too early.
        until = time.monotonic() + _DYING
        while code is None and _is_ending(self) and time.monotonic() < until:
            time.sleep(0.002)
            code = poll(self, flag)
        # One that goes on without the pipe costs this once.
        self.gb10_waited = getattr(self, "gb10_waited", False) or time.monotonic() >= until
        if before is None and code is not None:
            _write({"pid": self.pid, "name": getattr(self, "gb10_name", "?"), "code": code})
        return code

    def watched_send(self: Any, sig: int) -> None:
        if watched_poll(self) is None:
            _write({"pid": self.pid, "sent": int(sig)})
        send(self, sig)

    popen.__init__, popen.poll, popen._send_signal = __init__, watched_poll, watched_send
    begin_of_names = segments.prefix(str(Path(os.environ[ENV_NAME]).parent))
    memory: Any = shared_memory
    memory._make_filename = lambda: f"/{begin_of_names}{secrets.token_hex(8)}"
    util.register_after_fork(_follow_parent, _follow_parent)
