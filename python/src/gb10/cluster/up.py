"""Run a plan: each host's part over ssh, their outputs with the hosts' names in front, and one end for all.

Each part is tethered (`gb10.cluster.hosts.TETHER`): it ends when our side of the connection is gone or
silent, so that nothing stays on a host, however we end. When one part ends the others are ended.
"""

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from gb10.cluster.hosts import Host
from gb10.cluster.plan import Plan, Step
from gb10.errors import EXIT_FAILED, EXIT_MEMORY, EXIT_USAGE, ServerFailed, UserError
from gb10.serve.progress import write

BEAT = 2.0
"""Seconds between two signs of life for a host."""

SILENCE = 20.0
"""Seconds without one after which a host ends its part."""

GRACE = 20.0
"""Seconds that a part gets to end."""

_INTERRUPTED = 130
_PASSED_ON = (EXIT_USAGE, EXIT_FAILED, EXIT_MEMORY)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Part:
    """One host's part, running."""

    def __init__(self, step: Step, host: Host, key: str, show: Callable[[str], None]) -> None:
        self.step = step
        self.process: subprocess.Popen[bytes] = host.start(step.words, SILENCE)
        self._show = show
        self.write(key)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        if self.process.stdout is None:
            return
        for raw in self.process.stdout:
            line = raw.decode(errors="replace").rstrip()
            # The progress line of a terminal, and colours, are not for here.
            self._show(f"{self.step.host}| {''.join(one if one.isprintable() else ' ' for one in line)}\n")

    def write(self, line: str = "") -> None:
        """Show the host that somebody is there."""
        if self.process.stdin is None or self.process.stdin.closed:
            return
        # Its end shows elsewhere.
        with contextlib.suppress(OSError):
            os.set_blocking(self.process.stdin.fileno(), False)
            os.write(self.process.stdin.fileno(), f"{line}\n".encode())

    def release(self) -> None:
        """Let it end."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def wait(self, until: float) -> bool:
        """Wait for its end, and for the last of what it says. False where it did not come."""
        try:
            self.process.wait(max(until - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait()
            return False
        self._reader.join(2.0)
        return True


def _asked() -> "queue.SimpleQueue[int]":
    """Signals that ask for the end, as they come."""
    asked: queue.SimpleQueue[int] = queue.SimpleQueue()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        asked.put(number)

    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, on_signal)
    return asked


def _run(parts: Sequence[_Part], asked: "queue.SimpleQueue[int]") -> _Part | int:
    """Wait: the part that ended first, or the signal that came."""
    beat = time.monotonic()
    while True:
        for part in parts:
            if part.process.poll() is not None:
                return part
        if time.monotonic() - beat >= BEAT:
            beat = time.monotonic()
            for part in parts:
                part.write()
        try:
            return asked.get(timeout=0.1)
        except queue.Empty:
            continue


def up(plan: Plan, hosts: Sequence[Host], environment: Mapping[str, str]) -> int:
    """Run the plan until a signal ends it, or one of its parts; the exit status.

    0 after SIGTERM and SIGHUP, 130 after SIGINT. Raises UserError or ServerFailed when a part ended by
    itself, after the others were ended.
    """
    by_name = {host.name: host for host in hosts}
    lock = threading.Lock()

    def show(text: str) -> None:
        with lock:
            write(text)

    asked = _asked()
    parts: list[_Part] = []
    ended: _Part | int = 0
    try:
        for step in plan.steps:
            # Only the head has an API.
            key = "" if step.rank else environment.get("VLLM_API_KEY", "")
            parts.append(_Part(step, by_name[step.host], key, show))
        ended = _run(parts, asked)
    finally:
        for part in parts:
            part.release()
        until = time.monotonic() + GRACE
        for part in parts:
            if not part.wait(until):
                show(f"{part.step.host} did not end within {GRACE:.0f} s; its tether ends it\n")
    if isinstance(ended, int):
        show("stopped\n")
        return _INTERRUPTED if ended == signal.SIGINT else 0
    status = ended.process.returncode
    told = f"{ended.step.host} ended by itself (exit status {status}), and so the others were ended"
    error = UserError(told) if status == EXIT_USAGE else ServerFailed(told)
    error.exit_code = status if status in _PASSED_ON else EXIT_FAILED
    raise error
