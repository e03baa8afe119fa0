"""The unit's first process: starts the server, says when it is ready, feeds the watchdog while it answers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import IO

from notify import VARIABLES, Manager, watchdog
from pulse import INTERVAL, Heart, Pulse

from gb10.errors import EXIT_FAILED, EXIT_MEMORY, EXIT_USAGE

GRACE = 20.0
"""Seconds between our own SIGTERM and SIGKILL; `gb10 serve` ends within 6."""

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_READY = re.compile(r"ready after \d+ s: (\S+)/v1  \(model name: (.*)\)")
"""What `gb10 serve` prints once it has been asked and has answered."""
_SHORT = "gb10: error: not enough memory: "
_LOADING = "loading: "
_ERROR = "gb10: error: "
_POLL = 0.2
_PARTS = 4
"""Questions in the time that the watchdog gives."""


class Output(threading.Thread):
    """Passes one stream of the server's on, line by line; `last` is its last line."""

    def __init__(self, source: IO[bytes], out: IO[bytes], told: Callable[[str], None]) -> None:
        super().__init__(daemon=True)
        self._source, self._out, self._told = source, out, told
        self.last = ""
        self.start()

    def run(self) -> None:
        """Until the stream ends. Whoever reads ours may be gone: the server goes on."""
        for line in self._source:
            with suppress(OSError, ValueError):
                self._out.write(line)
                self._out.flush()
            text = line.decode(errors="replace").rstrip()
            if text:
                self.last = text
                self._told(text)


class Supervisor:
    """One server. ``run`` gives the exit status for the unit."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        self._command, self._variables = command, variables
        self._manager, self._limit = Manager(variables), watchdog(variables)
        self._url: str | None = None
        self._ending = False
        self._child = 0

    def run(self) -> int:
        """Start the server, and stay until it ends."""
        early: list[int] = []

        def pass_on(number: int, _frame: FrameType | None) -> None:
            if not self._child:
                early.append(number)
                return
            if not self._ending:
                self._ending = True
                self._manager.say("STOPPING=1", "STATUS=stopping")
            # Not by its object, which would first look whether it has ended.
            with suppress(ProcessLookupError):
                os.kill(self._child, number)

        for number in PASSED_ON:
            signal.signal(number, pass_on)
        given = {name: value for name, value in self._variables.items() if name not in VARIABLES}
        process = subprocess.Popen(self._command, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._child = process.pid
        for came in early:
            pass_on(came, None)
        assert process.stdout is not None and process.stderr is not None
        outputs = (
            Output(process.stdout, sys.stdout.buffer, self._said),
            Output(process.stderr, sys.stderr.buffer, self._complained),
        )
        failed = self._watch(process)
        status = process.wait()
        for output in outputs:
            # Something may have inherited the stream and live on.
            output.join(1)
        if failed is not None:
            return failed
        if status == EXIT_USAGE and outputs[1].last.startswith(_SHORT):
            return EXIT_MEMORY
        return status if status >= 0 else 128 - status

    def _said(self, line: str) -> None:
        if line.startswith(_LOADING):
            self._manager.status(line)
        elif self._url is None and (found := _READY.fullmatch(line)) is not None:
            self._manager.say("READY=1", f"STATUS=serves {found[2]} at {found[1]}/v1")
            self._url = found[1]

    def _complained(self, line: str) -> None:
        if line.startswith(_ERROR):
            self._manager.status(line.removeprefix("gb10: "))

    def _watch(self, process: subprocess.Popen[bytes]) -> int | None:
        """Feed the watchdog until the server ends. The unit's exit status where we ended it, else None."""
        heart: Heart | None = None
        words = ""
        while process.poll() is None:
            time.sleep(_POLL)
            if self._url is None or self._limit is None or self._ending:
                continue
            if heart is None:
                key = self._variables.get("VLLM_API_KEY")
                heart = Heart(self._url, key, min(INTERVAL, self._limit / _PARTS))
            seen = heart.look()
            if seen.pulse is Pulse.QUIET:
                continue
            if seen.words and seen.words != words:
                print(f"gb10: watchdog: {seen.words}", file=sys.stderr, flush=True)
            words = seen.words
            if seen.pulse is Pulse.WELL:
                self._manager.say("WATCHDOG=1")
            elif seen.pulse in (Pulse.LOST, Pulse.REFUSED) and not self._ending:
                self._manager.say("STOPPING=1", f"STATUS=stopping: {seen.words}")
                self._end(process)
                return EXIT_FAILED if seen.pulse is Pulse.LOST else EXIT_USAGE
        if heart is not None:
            heart.stop()
        return None

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            print(f"gb10: the server has not ended within {GRACE:.0f} s; killed", file=sys.stderr, flush=True)
            process.kill()
