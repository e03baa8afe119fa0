"""The processes of a node, and how they end."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

WORKER, ENGINE = "VLLM::Worker", "VLLM::EngineCor"
"""How vLLM calls its processes."""
RAY_WORKER = "ray::CpuRayWorkerProc"
"""How Ray calls vLLM's workers."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Node:
    """A server that was started, in the network namespace ``namespace`` or in this one."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        variables: Mapping[str, str],
        log: Path,
        namespace: str | None,
    ) -> None:
        self.name, self.log = name, log
        self.ended: float | None = None
        within = ["ip", "netns", "exec", namespace] if namespace else []
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*within, *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(variables),
                start_new_session=True,
            )
        self._family: dict[int, psutil.Process] = {}
        self._offset = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        self.process.wait()
        self.ended = time.monotonic()

    def family(self) -> list[psutil.Process]:
        """All processes of the node that were ever seen and live on, its own first."""
        try:
            root = psutil.Process(self.process.pid)
            for each in [root, *root.children(recursive=True)]:
                self._family.setdefault(each.pid, each)
        except psutil.Error:
            pass
        return [each for each in self._family.values() if _lives(each)]

    def called(self, title: str) -> list[psutil.Process]:
        """Those of a certain title."""
        return [each for each in self.family() if _title(each).startswith(title)]

    def left(self, seconds: float) -> list[str]:
        """Titles of those that still live after ``seconds``."""
        until = time.monotonic() + seconds
        while (found := self.family()) and time.monotonic() < until:
            time.sleep(0.1)
        return [_title(each) for each in found]

    def mark(self) -> None:
        """What was printed so far is of no interest to `said`."""
        self._offset = self.log.stat().st_size

    def said(self) -> list[str]:
        """Lines printed since `mark`."""
        with self.log.open("rb") as file:
            file.seek(self._offset)
            text = _COLOUR.sub("", file.read().decode(errors="replace"))
        return [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]

    def kill(self) -> None:
        """End all of them at once."""
        found = self.family()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for each in found:
                try:
                    os.kill(each.pid, number)
                except ProcessLookupError:
                    continue


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _title(process: psutil.Process) -> str:
    try:
        words = process.cmdline()
        return (
            (words[0] if words[0].startswith("VLLM::") else " ".join(words))[:100]
            if words
            else process.name()
        )
    except psutil.Error:
        return "gone"
