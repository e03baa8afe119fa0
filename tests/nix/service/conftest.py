"""The supervisor with a stand-in for the server, and what it tells its manager."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
SUPERVISOR = ROOT / "nix/modules/supervisor"
FAKE = Path(__file__).parent / "fake_serve.py"
PATIENCE = 20.0


class Manager:
    """A service manager: a socket, and the process that it started."""

    def __init__(self, folder: Path, watchdog: float | None) -> None:
        self.manner = folder / "manner"
        self.manner.write_text("ok")
        self.output = folder / "output"
        self.heard: list[tuple[float, str]] = []
        self._watchdog = watchdog
        self._folder = folder
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self._socket.setblocking(False)
        self.process: subprocess.Popen[bytes] | None = None

    def start(
        self, *arguments: str, options: tuple[str, ...] = (), bare: bool = False, **variables: str
    ) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "NOTIFY_SOCKET": str(self._folder / "notify"),
        }
        if self._watchdog is not None:
            environment["WATCHDOG_USEC"] = str(int(self._watchdog * 1e6))
        program = [] if bare else [sys.executable, str(FAKE), str(self.manner), *arguments]
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(SUPERVISOR), *options, *program],
                env=environment | variables,
                stdout=out,
                stderr=out,
            )

    def hear(self) -> None:
        while True:
            try:
                data = self._socket.recv(4096)
            except BlockingIOError:
                return
            self.heard += [(time.monotonic(), line) for line in data.decode().split("\n")]

    def wait_for(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < end, (self.heard, self.said)
            time.sleep(0.05)
            self.hear()

    def until(self, line: str) -> None:
        """Wait for an assignment."""
        self.wait_for(lambda: any(heard == line for _, heard in self.heard))

    def fed(self, seconds: float) -> int:
        """How often the watchdog is fed in the next seconds."""
        self.hear()
        before = len(self.heard)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.05)
            self.hear()
        return sum(line == "WATCHDOG=1" for _, line in self.heard[before:])

    @property
    def lines(self) -> list[str]:
        return [line for _, line in self.heard]

    @property
    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def ended(self) -> int:
        """Its exit status."""
        assert self.process is not None
        status = self.process.wait(PATIENCE)
        self.hear()
        return status

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            # Ours, and the stand-in, which is its only child.
            for child in (
                Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            ):
                os.kill(int(child), signal.SIGKILL)
            self.process.kill()
            self.process.wait(PATIENCE)
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path, 2)
    yield made
    made.close()


@pytest.fixture(scope="session")
def cases() -> dict[str, Any]:
    """What tests/nix/service/cases.nix gives."""
    file = os.environ.get("GB10_SERVICE_CASES")
    if not file:
        pytest.skip("GB10_SERVICE_CASES is not set: the flake's check has it")
    found: dict[str, Any] = json.loads(Path(file).read_text())
    return found
