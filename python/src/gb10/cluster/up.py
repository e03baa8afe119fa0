"""Start a plan's nodes, show what they write, and end all of them when one ends or a signal comes."""

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from gb10.cluster import guard
from gb10.cluster.plan import Node, Plan
from gb10.cluster.shell import Host
from gb10.errors import EXIT_USAGE, ServerFailed, UserError
from gb10.serve.progress import write
from gb10.serve.words import one_line

_INTERRUPTED = 130
_SSH_FAILED = 255
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_POLL = 0.1
_START_TIMEOUT = 30.0
"""Seconds in which a host must have started its node's shell."""

_TOGETHER = 0.5
"""Seconds in which a second signal is none of its own."""

STOP_TIMEOUT = guard.GRACE + 4.0
"""Seconds that the connections get to end by themselves: the hosts' shells kill after `guard.GRACE`."""

_READY = re.compile(r"ready after [0-9]+ s: (?P<url>\S+)|Application startup complete")
"""What ``gb10 serve`` and vLLM's own server say once requests are answered."""

_ERROR = "gb10: error: "
_LEAST_WAIT, _MOST_WAIT = 5.0, 60.0
"""Seconds before the set is started again: doubled after each start that did not become ready."""


class _Stopped(Exception):
    """A signal came while the hosts were asked."""


class Running:
    """A node that runs: its output printed line by line behind the host's name, its input the beats."""

    def __init__(self, node: Node, process: subprocess.Popen[bytes], width: int) -> None:
        self.node = node
        self.started = threading.Event()
        self.ready: str | None = None
        """The address that the head named, "" where it named none; None until it is ready."""
        self.said = ""
        """Its last line, or the last that says an error; before it started, what ssh or a greeting said."""
        self._process = process
        self._prefix = f"{node.host:<{width}} | "
        self._beaten = time.monotonic()
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            # Colours and other things for a terminal are not for ours.
            text = raw.decode(errors="replace").rstrip()
            line = "".join(character if character.isprintable() else " " for character in text)
            if line == guard.STARTED:
                self.started.set()
                self.said = ""
                continue
            if self.ready is None and (match := _READY.search(line)):
                self.ready = match["url"] or ""
            if line.strip() and (line.startswith(_ERROR) or not self.said.startswith(_ERROR)):
                self.said = one_line(line)
            write(f"{self._prefix}{line}\n")

    @property
    def status(self) -> int | None:
        """Exit status, None while it runs."""
        return self._process.poll()

    @property
    def title(self) -> str:
        """The host and what it was for."""
        return f"{self.node.host} ({'head' if self.node.rank == 0 else f'worker {self.node.rank}'})"

    def beat(self) -> None:
        """Say that we live, when it is time."""
        if time.monotonic() < self._beaten + guard.BEAT_EVERY:
            return
        self._beaten = time.monotonic()
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            os.write(self._process.stdin.fileno(), guard.BEAT)

    def finish(self) -> None:
        """Tell the host's shell to end the node."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def cut(self) -> None:
        """End the connection. What runs on the host ends by its shell, if that can be reached no more."""
        self._process.kill()

    def join(self, timeout: float) -> bool:
        """Wait for its end and its last lines; whether they came."""
        try:
            self._process.wait(max(timeout, 0))
        except subprocess.TimeoutExpired:
            return False
        self._reader.join(1.0)
        return True

    def death(self) -> str:
        """How it ended, in words."""
        status = self.status
        said = f": {self.said.removeprefix(_ERROR)}" if self.said else ""
        if status == _SSH_FAILED:
            return f"the ssh connection to {self.title} ended{said}"
        if status is not None and status < 0:
            return f"the ssh connection to {self.title} was ended here by signal {-status}{said}"
        if status is not None and status > 128:
            return f"{self.title} was ended by signal {status - 128}{said}"
        return f"{self.title} ended with status {status}{said}"


class Supervisor:
    """Runs what ``prepare`` plans, again and again with ``restart``; see `run`."""

    def __init__(
        self,
        prepare: Callable[[], tuple[Plan, Mapping[str, Host]]],
        *,
        api_port: int,
        restart: bool = False,
        least_wait: float = _LEAST_WAIT,
    ) -> None:
        self._prepare = prepare
        self._api_port = api_port
        self._restart = restart
        self._least_wait = least_wait
        self._stopping: int | None = None
        self._asked = 0.0
        self._asking = False
        self._running: list[Running] = []

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._stopping is None:
            self._stopping, self._asked = number, now
            if self._asking:
                raise _Stopped
        elif now - self._asked > _TOGETHER:
            for one in self._running:
                one.cut()

    def run(self) -> int:
        """Run until a signal comes: 0, or 130 after SIGINT. A second signal ends the connections at once.

        Raises ServerFailed when a node ends and there is no restart, UserError for what the user must mend.
        """
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        try:
            for number, handler in before.items():
                # ``nohup gb10 cluster up &`` outlives its terminal.
                if handler is not signal.SIG_IGN:
                    signal.signal(number, self._on_signal)
            return self._run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self) -> int:
        wait, first = self._least_wait, True
        while self._stopping is None:
            ready = False
            try:
                plan, hosts = self._ask()
                self._start(plan, hosts)
                ready = self._wait_ready(plan)
                self._wait_end()
            except _Stopped:
                break
            except UserError as error:
                self._end()
                # What was right before may be so again: a host boots, a port is still taken.
                if not self._restart or (first and not isinstance(error, ServerFailed)):
                    raise
                problem = error
            else:
                break
            first = False
            wait = self._least_wait if ready else wait
            write(f"{problem}\nstarting all again in {wait:.0f} s\n")
            self._sleep(wait)
            wait = min(2 * wait, _MOST_WAIT)
        self._end()
        write("stopped\n")
        return _INTERRUPTED if self._stopping == signal.SIGINT else 0

    def _ask(self) -> tuple[Plan, Mapping[str, Host]]:
        """A signal does not wait for a host that is slow to answer: it raises _Stopped here."""
        self._asking = True
        try:
            return self._prepare()
        finally:
            self._asking = False

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._stopping is None and time.monotonic() < until:
            time.sleep(_POLL)

    def _start(self, plan: Plan, hosts: Mapping[str, Host]) -> None:
        """Workers first, the head once each of them has started."""
        self._running = []
        width = max(len(node.host) for node in plan.nodes)
        for node in reversed(plan.nodes):
            if node.rank == 0:
                self._wait(lambda: all(one.started.is_set() for one in self._running), _START_TIMEOUT)
            if self._stopping is not None:
                return
            write(f"starting {node.host}\n")
            process = hosts[node.host].start(guard.guarded(node.words))
            self._running.append(Running(node, process, width))

    def _wait(self, done: Callable[[], bool], timeout: float | None = None) -> None:
        """Wait for ``done``, a signal or, which raises ServerFailed, a node's end or the time's."""
        began = time.monotonic()
        while self._stopping is None and not done():
            self._look()
            if timeout is not None and time.monotonic() > began + timeout:
                late = [one.title for one in self._running if not one.started.is_set()]
                raise ServerFailed(f"no shell started on {', '.join(late)} within {timeout:.0f} s")
            time.sleep(_POLL)

    def _look(self) -> None:
        """Beat, and raise when a node has ended."""
        for one in self._running:
            one.beat()
        if any(one.status is not None for one in self._running):
            dead = [one for one in self._running if one.status is not None]
            for one in dead:
                one.join(1.0)
            self._end()
            raise self._failure(dead)

    @staticmethod
    def _failure(dead: Sequence[Running]) -> UserError:
        """All that ended at one look; what came later is a consequence."""
        text = "; ".join(one.death() for one in dead) + "; all nodes were ended"
        bad_input = any(one.status == EXIT_USAGE for one in dead)
        return UserError(text) if bad_input else ServerFailed(text)

    def _wait_ready(self, plan: Plan) -> bool:
        """Wait until the head answers; whether it does."""
        if len(self._running) < len(plan.nodes):
            return False
        began, head = time.monotonic(), self._running[-1]
        self._wait(lambda: head.ready is not None)
        if head.ready is None:
            return False
        url = head.ready or f"http://{head.node.host}:{self._api_port}/v1"
        hosts = ", ".join(node.host for node in plan.nodes)
        write(f"ready after {time.monotonic() - began:.0f} s on {hosts}: {url} of {head.node.host}\n")
        return True

    def _wait_end(self) -> None:
        self._wait(lambda: False)

    def _end(self) -> None:
        """End all nodes and wait for them; what does not answer in time is cut off."""
        until = time.monotonic() + STOP_TIMEOUT
        for one in self._running:
            one.finish()
        for one in self._running:
            if not one.join(until - time.monotonic()):
                write(f"{one.title} did not end in {STOP_TIMEOUT:.0f} s; its host ends it by itself\n")
                one.cut()
                one.join(1.0)
        self._running = []
