"""The process between `gb10 serve` and vLLM: it outlives the one and leaves nothing of the other.

Run as ``python -I -S keeper.py LIFELINE OWNER DEATHS FOLDERS COMMAND...``; the standard library,
`gb10.deaths` and `gb10.segments`, nothing else.
LIFELINE is the reading end of a pipe whose other end only `gb10 serve` holds; OWNER an open file whose lock
says that FOLDERS, a JSON list, are in use. However `gb10 serve` ends, SIGKILL at any moment too, the pipe
ends, and everything that COMMAND started is killed: the kernel gives orphans to us (we are a subreaper), so
nothing can hide, whatever its session or its parent. Then the folders are removed, and after every end the
shared memory (`gb10.segments`).

SIGTERM is passed on to COMMAND. When COMMAND ends, what it left behind gets ``LINGER`` seconds. Our exit
status is COMMAND's, 128 + N after signal N. Should we be killed ourselves, COMMAND gets SIGKILL from the
kernel, and `gb10 serve`, which is a subreaper too, ends the rest.

Deaths that we see are lines of JSON in the file DEATHS (`gb10.serve.cause` reads it).
"""

import contextlib
import ctypes
import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Mapping

if __name__ == "__main__":
    # Last: with -I and -S there is the standard library alone, and it stays in front.
    sys.path.append(__file__.rsplit(os.sep, 3)[0])

from gb10 import deaths, segments

LINGER = 1.0
"""Seconds that COMMAND's processes get to follow it."""

KILL_LIMIT = 10.0
"""Seconds after which we go although a killed process stays (it hangs in the kernel)."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_TRACKER = b"multiprocessing.resource_tracker"
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

_prctl = ctypes.CDLL(None).prctl


def _read(path: str) -> bytes:
    """A file of /proc. (pathlib alone would double the time of our start.)"""
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read()


def is_tracker(pid: int) -> bool:
    """Whether this is Python's resource tracker.

    It ends after the last of the others, when it has removed their shared memory.
    """
    with contextlib.suppress(OSError):
        return _TRACKER in _read(f"/proc/{pid}/cmdline")
    return False


def descendants() -> set[int]:
    """Our living descendants."""
    parents: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                state, parent = _read(f"{entry.path}/stat").rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    parents[int(entry.name)] = int(parent)
    found: set[int] = set()
    while more := {pid for pid, up in parents.items() if up == os.getpid() or up in found} - found:
        found |= more
    return found


class Keeper:
    """Starts COMMAND and waits for its end, or for that of `gb10 serve`."""

    def __init__(self, lifeline: int, record: str, command: list[str]) -> None:
        self.lifeline = lifeline
        self.deaths = record
        self.status: int | None = None
        self.alone = False
        """Whether `gb10 serve` is gone."""
        # Signals come through a pipe, so that the loop below sleeps in one place.
        self._signals, wake = os.pipe()
        for end in (self._signals, wake):
            os.set_blocking(end, False)
        inherited = {number: signal.getsignal(number) for number in _HANDLED}
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in _HANDLED:
            signal.signal(number, lambda *_: None)
        self.child = self._start(command, inherited)

    def _start(self, command: list[str], inherited: Mapping[signal.Signals, object]) -> int:
        us = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != us:
                os._exit(0)
            signal.set_wakeup_fd(-1)
            for number, handler in inherited.items():
                # Under nohup SIGHUP stays ignored.
                kept = handler is signal.SIG_IGN and number in (signal.SIGHUP, signal.SIGINT)
                signal.signal(number, signal.SIG_IGN if kept else signal.SIG_DFL)
            os.execvp(command[0], command)
        except OSError as error:
            print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        finally:
            os._exit(127)

    def run(self) -> int:
        """Wait. Returns our exit status."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.lifeline, selectors.EVENT_READ)
            selector.register(self._signals, selectors.EVENT_READ)
            until = None
            while not self.alone:
                self._reap()
                if self.status is not None:
                    until = until or time.monotonic() + LINGER
                    if not descendants() or time.monotonic() >= until:
                        break
                for key, _ in selector.select(None if until is None else 0.05):
                    if key.fd == self.lifeline:
                        self.alone = not os.read(self.lifeline, 1)
                    elif signal.SIGTERM in os.read(self._signals, 64) and self.status is None:
                        os.kill(self.child, signal.SIGTERM)
        self._kill()
        return 128 + signal.SIGKILL if self.status is None else self.status

    def _reap(self) -> None:
        """Collect what is dead and write down how it ended, COMMAND first: the others followed it."""
        dead, name = [], "?"
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                with contextlib.suppress(OSError):
                    name = _read(f"/proc/{found.si_pid}/comm").decode(errors="replace").strip()
                code = os.waitstatus_to_exitcode(os.waitpid(found.si_pid, 0)[1])
                dead.append((found.si_pid != self.child, found.si_pid, name, code))
        for orphan, pid, name, code in sorted(dead):
            if not orphan:
                self.status = code if code >= 0 else 128 - code
            deaths.record(self.deaths, {"pid": pid, "name": name, "code": code, "orphan": orphan})

    def _kill(self) -> None:
        began = time.monotonic()
        while (left := descendants()) and time.monotonic() < began + KILL_LIMIT:
            spared = {pid for pid in left if is_tracker(pid)}
            for pid in left - spared if time.monotonic() < began + LINGER else left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
            self._reap()
        self._reap()


def main(arguments: list[str]) -> int:
    """Keep the command of ``arguments``; its exit status."""
    lifeline, owner = int(arguments[0]), int(arguments[1])
    record, folders, *command = arguments[2:]
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _prctl(_PR_SET_NAME, b"gb10-keeper", 0, 0, 0)
    for file in (lifeline, owner):
        os.set_inheritable(file, False)
    keeper = Keeper(lifeline, record, command)
    # The pipes and sockets that COMMAND was given are its own: who waits for their end must not wait for
    # ours.
    for file in [int(entry.name) for entry in os.scandir("/proc/self/fd")]:
        with contextlib.suppress(OSError):
            if file > 2 and os.get_inheritable(file):
                os.close(file)
    status = keeper.run()
    segments.remove(os.path.dirname(record))  # noqa: PTH120
    if keeper.alone:
        import shutil  # half of our start otherwise

        for folder in json.loads(folders):
            shutil.rmtree(folder, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
