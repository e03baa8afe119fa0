"""Run vLLM as a child, wait until it answers, pass signals on, and leave no process behind."""

import contextlib
import ctypes
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil  # type: ignore[import-untyped, unused-ignore]

from gb10.errors import MemoryShort, ServerFailed, UserError
from gb10.machine import memory, watch
from gb10.serve import cause, keeper, progress
from gb10.serve.link import Link
from gb10.serve.readiness import Probe
from gb10.serve.scratch import Scratch, clear_left_overs, open_log
from gb10.vllm_plugin import lifeline, refusal
from gb10.vllm_plugin.log import JOINED, UNHEALTHY, WORD_NAME, Reader, after

TERM_GRACE = 6.0
"""Seconds that vLLM gets after SIGTERM before it is killed. Killing takes well under a second more."""

LOADING_GRACE = 1.0
"""The same before it has answered: there is no request to end, and its core does not heed SIGTERM yet."""

_KILL_WAIT = 2.0
_DEATH_WAIT = 8.0
"""Seconds in which a server whose engine is dead ends by itself: vLLM looks every 5 s."""

_TOGETHER = 0.5
"""Seconds in which a second signal is none of its own."""

PEER_WAIT = 2.0
"""Seconds in which another node says why it ended, when vLLM ended here: over that, perhaps."""

ANSWER_WAIT = 8.0
"""Seconds for vLLM to end over another node's end, so that its clients get an answer."""

_KEEPER = "gb10's process gb10-keeper, which vLLM ends with,"
_PR_SET_CHILD_SUBREAPER = 36
_POLL = 0.2
_TAIL = 2000
"""Lines of the log that are searched for the cause of a failure."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


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
    """vLLM in a session of its own with ``environment``, its log in a file in ``logs`` (None: no folder).

    It inherits the files ``pass_fds``. Between it and us stands `gb10.serve.keeper`, which ends all that is
    left when either side is gone, and looks at memory (``limits``: the defaults without). ``stop`` ends it;
    it is safe to call twice. ``stopping`` is set once a signal asked for the end. Raises UserError when there
    is no room for its files.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        logs: Path | None,
        *,
        verbose: bool = False,
        pass_fds: Sequence[int] = (),
        limits: watch.Limits | None = None,
    ) -> None:
        limits = limits or watch.Limits()
        self.stopping: int | None = None
        self.weights: Sequence[Path] = ()
        """Files that are dropped from the page cache when memory gets short."""
        self.link: Link | None = None
        """To the other nodes, where there are some."""
        self.refused: str | None = None
        """What vLLM's log says against the model, if it does (`gb10.vllm_plugin.refusal`)."""
        self._verbose = verbose
        self._word = secrets.token_hex(8)
        self._reader = Reader(self._word)
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._partial = b""
        self._offset = 0
        self._ready = False
        self._asked = 0.0
        self._dying = False
        """Whether a process of vLLM's was killed, and the other nodes know."""
        self._killed_before = memory.oom_kills()
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        clear_left_overs()
        self.log_path, log = open_log(logs)
        with log:
            # vLLM leaves sockets and files in the temporary folder; this one goes with the server.
            self._scratch = Scratch()
            self._deaths = self._scratch.path / "deaths"
            variables = {
                **environment,
                **self._scratch.variables(environment),
                "PYTHONUNBUFFERED": "1",
                lifeline.ENV_NAME: str(self._deaths),
                WORD_NAME: self._word,
                watch.ENV_NAME: str(self._scratch.path / watch.BOARD),
                watch.LIMITS_NAME: json.dumps(limits.words),
            }
            self._board = watch.Board(variables[watch.ENV_NAME], write=True)
            self._told = False
            reading, self._lifeline = os.pipe()
            owner = self._scratch.owner.fileno()
            folders = json.dumps(self._scratch.folders)
            kept = [str(reading), str(owner), str(self._deaths), folders, json.dumps(limits.words), *command]
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, *kept],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[reading, owner, *pass_fds],
            )
            os.close(reading)

    @property
    def exit_code(self) -> int | None:
        """Exit status of vLLM, 128 + N after signal N; -N: the keeper's own signal; None while it runs."""
        return self._process.poll()

    def handle_signals(self) -> None:
        """Let SIGTERM, SIGINT and SIGHUP ask for the end; a second one kills at once.

        One that comes with the first is the same: who signals a process and its group sends two.
        One that was ignored when we started stays so: ``nohup gb10 serve &`` outlives its terminal.
        """

        def on_signal(number: int, _frame: FrameType | None) -> None:
            now = time.monotonic()
            if self.stopping is None:
                self.stopping, self._asked = number, now
            elif now - self._asked > _TOGETHER:
                self._cut()

        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
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
                self.refused = self.refused or after(refusal.PREFIX, line, self._word)
                if self._verbose:
                    progress.write(f"{line}\n")
                yield line

    def feed(self, show: progress.Progress) -> None:
        """Let ``show`` see the new lines, but for what a client may have written."""
        for line in self._reader.heard(self.new_lines()):
            show.feed(line)

    def failure(self, doing: str) -> UserError:
        """The one line that says why vLLM ended: a UserError where it refused the model."""
        deque(self.new_lines(), maxlen=0)
        if self.refused is not None and not self._ready:
            return UserError(self.refused)
        if (short := cause.memory_short(self._deaths)) is not None:
            return self._short(f"vLLM was ended while {doing}, before memory ran out: {short}")
        lines = [*self._tail, self._partial.decode(errors="replace")]
        status = self.exit_code
        death = cause.violent_death(self._deaths, self._killed_before)
        if death is None and status is not None and status < 0:
            # It watched the others and wrote down how they end; the kernel ends them with it.
            death = cause.killed(_KEEPER, -status, self._killed_before)
        if death is not None:
            self._say(death)
            return self._failed(f"vLLM ended while {doing}: {death}")
        if self.link is not None and (trouble := self.link.wait(PEER_WAIT)) is not None:
            return trouble.error(str(self.log_path))
        reason = cause.lost_rank(lines) or cause.last_error(lines)
        if reason is None:
            last = cause.last_line(lines)
            reason = f"its log names no error and ends with: {last}" if last else "its log says nothing"
            # So it ends after a SIGTERM, and that was not ours.
            reason = f"{reason}; perhaps somebody sent it SIGTERM" if status == 0 else reason
        return self._failed(f"vLLM ended while {doing} (exit status {status}): {reason}")

    def _short(self, text: str) -> MemoryShort:
        return MemoryShort(
            f"{text}; free memory, or let vLLM have less (--gpu-memory-utilization, --kv-cache-memory-bytes) "
            f"[full log: {self.log_path}]"
        )

    def _failed(self, text: str) -> ServerFailed:
        return ServerFailed(f"{text} [full log: {self.log_path}]")

    def wait_ready(
        self, url: str, key: str | None, show: progress.Progress, answers: Callable[[], bool] = lambda: True
    ) -> str | None:
        """Wait until vLLM answers, drawing progress; the name of the first served model.

        Ready means: /health is 200, /v1/models lists a model, and a few tokens were generated whose
        log-probabilities are numbers (MTP can kill the engine after /health is green, and a model with broken
        scales answers). The name is empty where vLLM talks only to clients with a certificate. None when a
        signal asked for the end. ``answers``: whether our vLLM is what listens on that port.

        Raises ServerFailed when vLLM ends or answers with an error, UserError when the model is at fault.
        """
        probe = Probe(url, key, answers)
        try:
            while self.stopping is None:
                self.feed(show)
                if probe.listed and show.stage != progress.ANSWER_STAGE:
                    show.stage = progress.FIRST_TOKEN_STAGE
                self._tell(show)
                self._check_nodes()
                if not self._verbose:
                    show.beat()
                if self.exit_code is not None or self.refused is not None:
                    raise self.failure("loading")
                if probe.done.wait(_POLL / 2):
                    if probe.error is not None:
                        raise self._error(probe)
                    self._ready = True
                    return probe.model or ""
        finally:
            probe.stop()
            show.clear()
        return None

    def wait_joined(self, show: progress.Progress) -> bool:
        """Wait until this node without an API has joined the others, and then until the head serves.

        False when a signal asked for the end. Raises an error when vLLM or another node ends.
        """
        joined = False
        try:
            while self.stopping is None:
                for line in self.new_lines():
                    joined = joined or after(JOINED, line, self._word) is not None
                    for heard in self._reader.heard([line]):
                        show.feed(heard)
                self._tell(show)
                self._check_nodes()
                if not self._verbose:
                    show.beat()
                if self.exit_code is not None or self.refused is not None:
                    raise self.failure("loading")
                if joined and self.link is not None and self.link.others("ready"):
                    self._ready = True
                    return True
                time.sleep(_POLL / 2)
        finally:
            show.clear()
        return False

    def _check_nodes(self) -> None:
        """Raise an error where another node is gone or cut off: first vLLM ends, and answers its clients."""
        if self.link is None:
            return
        if (death := cause.violent_death(self._deaths, self._killed_before)) is not None:
            # vLLM takes seconds to end over it, and the others would blame the connection.
            self._say(death)
        trouble = self.link.trouble
        if trouble is None or self._dying:
            return
        if trouble.hangs:
            self._end_engine()
        clients = self._ready and self.link.is_head
        until = time.monotonic() + (ANSWER_WAIT if clients else 0.0)
        while self.exit_code is None and self.stopping is None and time.monotonic() < until:
            time.sleep(_POLL)
        raise trouble.error(str(self.log_path))

    def _say(self, death: str) -> None:
        """Tell the other nodes once that a process of ours was killed."""
        if self.link is not None and not self._dying:
            self._dying = True
            self.link.say("failed", death)

    def _end_engine(self) -> None:
        """Kill what computes and may wait for ever, so that the API server answers with an error.

        The keeper's child is the API server, whose children are the engine core and Python's tracker; a node
        without an API has workers there.
        """
        with contextlib.suppress(psutil.Error):
            for server in psutil.Process(self._process.pid).children():
                for child in server.children():
                    if not keeper.is_tracker(child.pid):
                        child.kill()

    def _error(self, probe: Probe) -> UserError:
        """What a wrong answer means: the cause is in the log if vLLM is about to end."""
        if self._board.full:
            return self._short(f"vLLM is loaded and takes no requests: {self._board.words}")
        deadline = time.monotonic() + (_DEATH_WAIT if probe.dying else 0.0)
        while time.monotonic() < deadline and self.stopping is None:
            if self.exit_code is not None:
                return self.failure("computing the first token")
            time.sleep(_POLL)
        if isinstance(probe.error, ServerFailed):
            return self._failed(str(probe.error))
        return UserError(f"{probe.error} [full log: {self.log_path}]")

    def wait(self) -> None:
        """Wait until a signal asks for the end, and say it when /health turns red.

        Raises ServerFailed when vLLM ends by itself.
        """
        while self.stopping is None:
            for line in self.new_lines():
                if (reason := after(UNHEALTHY, line, self._word)) is not None:
                    progress.write(f"unhealthy: {reason} (/health says so; a restart is needed)\n")
            self._tell()
            self._check_nodes()
            try:
                self._process.wait(_POLL)
            except subprocess.TimeoutExpired:
                continue
            if self.stopping is None:
                raise self.failure("serving")

    def _tell(self, show: progress.Progress | None = None) -> None:
        """Say when memory gets short, and when it is no more; let go of page cache that is ours."""
        short = self._board.full
        if short is self._told:
            return
        self._told = short
        if show is not None:
            show.clear()
        if short:
            progress.write(f"memory is short: {self._board.words}; new requests get 503\n")
            memory.drop(self.weights)
        else:
            progress.write("memory is no longer short\n")

    def _cut(self) -> None:
        """Let the keeper kill everything."""
        end, self._lifeline = self._lifeline, -1
        # A signal may come in between, and close it.
        with contextlib.suppress(OSError):
            if end >= 0:
                os.close(end)

    def _kill(self, *, trackers: bool) -> None:
        for pid in family(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                if trackers or not keeper.is_tracker(pid):
                    os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        """Collect dead children: the keeper, and what it could not end itself."""
        self._process.poll()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def stop(self) -> None:
        """End vLLM and everything it started: SIGTERM, then SIGKILL after a grace."""
        if self.exit_code is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(TERM_GRACE if self._ready else LOADING_GRACE)
        self._cut()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_WAIT)
        # Somebody may have killed the keeper.
        began = time.monotonic()
        while family(self._process.pid) and time.monotonic() < began + _KILL_WAIT:
            self._kill(trackers=time.monotonic() > began + keeper.LINGER)
            self._reap()
            time.sleep(0.05)
        self._reap()
        self._scratch.remove()
