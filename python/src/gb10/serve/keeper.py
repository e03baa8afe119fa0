"""The process between `gb10 serve` and vLLM: it outlives the one and leaves nothing of the other.

Run as ``python -I -S keeper.py LIFELINE OWNER DEATHS FOLDERS WATCH COMMAND...``; the standard library,
`gb10.deaths`, `gb10.segments` and `gb10.machine.watch` with what that needs, nothing else.
LIFELINE is the reading end of a pipe whose other end only `gb10 serve` holds; OWNER an open file whose lock
says that FOLDERS, a JSON list, are in use. However `gb10 serve` ends, SIGKILL at any moment too, the pipe
ends, and everything that COMMAND started is killed: the kernel gives orphans to us (we are a subreaper), so
nothing can hide, whatever its session or its parent. Then the folders are removed, and after every end the
shared memory (`gb10.segments`).

SIGTERM is passed on to COMMAND. When COMMAND ends, what it left behind gets ``LINGER`` seconds. Our exit
status is COMMAND's, 128 + N after signal N. Should we be killed ourselves, COMMAND gets SIGKILL from the
kernel, and `gb10 serve`, which is a subreaper too, ends the rest.

We look at memory too, with the limits of WATCH (JSON, `gb10.machine.watch.Limits.words`). While it is short,
the board beside DEATHS says so. Before it runs out COMMAND gets SIGTERM, and all that is left SIGKILL after
``MEMORY_GRACE`` seconds, or at once where memory goes on falling.

Deaths that we see are lines of JSON in the file DEATHS (`gb10.serve.cause` reads it), and so is that end.
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
from gb10.machine.watch import BOARD, Board, Limits, Watch

LINGER = 1.0
"""Seconds that COMMAND's processes get to follow it."""

MEMORY_GRACE = 2.0
"""Seconds for an orderly end when memory is nearly gone."""

KILL_LIMIT = 10.0
"""Seconds after which we go although a killed process stays (it hangs in the kernel)."""

_VICTIM = b"1000"
"""For oom_score_adj: should the kernel kill for want of memory after all, then vLLM first. Of memory that the
GPU shares it sees nothing in a process, and would take one that frees next to nothing."""

_MCL_CURRENT = 1
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_TRACKER = b"multiprocessing.resource_tracker"
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

_libc = ctypes.CDLL(None)
_prctl = _libc.prctl


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

    def __init__(self, lifeline: int, record: str, watch: Watch, command: list[str]) -> None:
        self.lifeline = lifeline
        self.deaths = record
        self.status: int | None = None
        self.alone = False
        """Whether `gb10 serve` is gone."""
        self.watch = watch
        self.board = Board(f"{os.path.dirname(record)}/{BOARD}", write=True)  # noqa: PTH120
        self._end_by: float | None = None
        """When COMMAND must be gone, once memory is nearly gone."""
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
            _offer()
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
                if self._lost():
                    break
                if self.status is not None:
                    until = until or time.monotonic() + LINGER
                    if not descendants() or time.monotonic() >= until:
                        break
                for key, _ in selector.select(self.watch.pause if until is None else 0.05):
                    if key.fd == self.lifeline:
                        self.alone = not os.read(self.lifeline, 1)
                    elif signal.SIGTERM in os.read(self._signals, 64) and self.status is None:
                        os.kill(self.child, signal.SIGTERM)
        self._kill()
        return 128 + signal.SIGKILL if self.status is None else self.status

    def _lost(self) -> bool:
        """Look at memory, and say so where it is short. Whether there is no time for an orderly end."""
        if self.status is not None:
            return False
        before, level = self.watch.level, self.watch.look()
        if self._end_by is not None:
            return level == Watch.LOST or time.monotonic() >= self._end_by
        if level >= Watch.STOP:
            # First of all, since each other step may have to wait for memory.
            os.kill(self.child, signal.SIGKILL if level == Watch.LOST else signal.SIGTERM)
            self._end_by = time.monotonic() + MEMORY_GRACE
            self.board.write(self.watch.words)
            deaths.record(self.deaths, {"memory": self.watch.words})
        elif level != before:
            self.board.write(self.watch.words if level else None)
        return level == Watch.LOST

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


def _offer() -> None:
    """Let the kernel kill this process before others, unless somebody has had his say already."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "rb+", buffering=0) as file:  # noqa: PTH123
        if file.read().strip() == b"0":
            file.write(_VICTIM)


def main(arguments: list[str]) -> int:
    """Keep the command of ``arguments``; its exit status."""
    lifeline, owner = int(arguments[0]), int(arguments[1])
    record, folders, orders, *command = arguments[2:]
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _prctl(_PR_SET_NAME, b"gb10-keeper", 0, 0, 0)
    for file in (lifeline, owner):
        os.set_inheritable(file, False)
    keeper = Keeper(lifeline, record, Watch.here(Limits(*json.loads(orders))), command)
    # The pipes and sockets that COMMAND was given are its own: who waits for their end must not wait for
    # ours.
    for file in [int(entry.name) for entry in os.scandir("/proc/self/fd")]:
        with contextlib.suppress(OSError):
            if file > 2 and os.get_inheritable(file):
                os.close(file)
    # Where that is allowed: who watches memory must not wait for it. (COMMAND has none of this lock.)
    _libc.mlockall(_MCL_CURRENT)
    status = keeper.run()
    segments.remove(os.path.dirname(record))  # noqa: PTH120
    if keeper.alone:
        import shutil  # half of our start otherwise

        for folder in json.loads(folders):
            shutil.rmtree(folder, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
