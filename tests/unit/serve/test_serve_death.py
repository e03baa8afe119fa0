"""`gb10 serve` and vLLM die as one: a signal at every stage, and SIGKILL to each of the processes.

The processes are those of stand_in.py; tests/e2e/test_serve.py does some of it with vLLM.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

STAGES = ("python", "import", "core", "load", "warm-up", "ready", "request")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STOP_LIMIT = 10.0
"""Seconds that the end may take; SIGTERM to a server that answers may use up its grace of 6 s."""

DRIVER = """
import json, os, sys
from pathlib import Path
from gb10.errors import UserError
from gb10.machine.watch import Limits
from gb10.serve.progress import Progress
from gb10.serve.supervise import Server
port, logs, limits, *command = sys.argv[1:]
server = Server(command, dict(os.environ), Path(logs), limits=Limits(*json.loads(limits)))
print("keeper", server._process.pid, flush=True)
try:
    server.handle_signals()
    if server.wait_ready(f"http://127.0.0.1:{port}", None, Progress()) is not None:
        print("ready", flush=True)
        server.wait()
except UserError as error:
    print("error:", error, flush=True)
    sys.exit(error.exit_code)
finally:
    server.stop()
print("stopped", flush=True)
sys.exit(130 if server.stopping == 2 else 0)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


class Run:
    """A driver that serves the stand-in, which stays at a stage.

    ``limits``: those of `gb10.machine.watch.Limits`; ``enter`` is run in the driver before it starts.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        limits: Sequence[int | str | None] = (),
        enter: Callable[[], None] | None = None,
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.stage = stage
        self.notes = folder / "notes"
        self.notes.touch()
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        stand_in = [sys.executable, str(Path(__file__).with_name("stand_in.py")), str(self.port), stage]
        driver = [sys.executable, "-c", DRIVER, str(self.port), str(folder / "logs"), json.dumps(limits)]
        self.process = subprocess.Popen(
            [*driver, *stand_in, str(self.notes)],
            preexec_fn=enter,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": str(self.temporary)},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(line.rstrip("\n") for line in self.process.stdout)

    def noted(self, what: str) -> str:
        """What a process wrote down about itself."""
        found = re.search(rf"^{what} (\S+)$", self.notes.read_text(), re.MULTILINE)
        return found[1] if found else ""

    @property
    def keeper(self) -> int:
        return int(next(line for line in self.lines if line.startswith("keeper")).split()[1])

    @property
    def pids(self) -> set[int]:
        """Everything but the driver."""
        return {
            self.keeper,
            *map(int, re.findall(r"^(?:server|core|worker) (\d+)$", self.notes.read_text(), re.M)),
        }

    def reach(self) -> None:
        """Wait until the stage is reached."""
        self._until(lambda: "ready" in self.lines or "reached" in self.notes.read_text())
        if self.stage == "request":
            threading.Thread(target=self._ask, daemon=True).start()
            self._until(lambda: "reached" in self.notes.read_text())

    def _until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not done():
            assert time.monotonic() < deadline and self.process.poll() is None, (
                self.lines,
                self.notes.read_text(),
            )
            time.sleep(0.02)

    def _ask(self) -> None:
        body = json.dumps({"prompt": "slow"}).encode()
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/completions", body, timeout=60)

    def left(self, seconds: float) -> set[int]:
        """Processes that live on after at most that long."""
        deadline = time.monotonic() + seconds
        while (left := {pid for pid in self.pids if alive(pid)}) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def end(self) -> str:
        """The last line of the driver, after its end."""
        self.process.wait(STOP_LIMIT)
        self._reader.join(5)
        return self.lines[-1]

    def close(self) -> None:
        """Kill what is left."""
        with contextlib.suppress(StopIteration):
            for pid in {self.process.pid, *self.pids}:
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait(10)


Start = Callable[[str], Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a `Run` which is to stay at a stage; it is closed at the end of the test."""
    made: list[Run] = []

    def run(stage: str) -> Run:
        made.append(Run(tmp_path, stage))
        return made[-1]

    yield run
    for one in made:
        one.close()


def check_nothing_left(run: Run) -> None:
    assert run.left(STOP_LIMIT) == set()
    deadline = time.monotonic() + 2
    while (left := list(run.temporary.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == [], "scratch folders"
    if name := run.noted("memory"):
        assert not Path("/dev/shm", name).exists(), "shared memory"


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("stage", STAGES)
def test_signal_to_serve(start: Start, stage: str, number: signal.Signals) -> None:
    made = start(stage)
    made.reach()
    # The keeper and the API server, then the engine core, then the worker too.
    assert len(made.pids) == {"python": 2, "import": 2, "core": 3}.get(stage, 4)
    made.process.send_signal(number)
    began = time.monotonic()
    last = made.end()
    took = time.monotonic() - began
    check_nothing_left(made)
    if number == signal.SIGKILL:
        assert made.process.returncode == -signal.SIGKILL
        assert time.monotonic() - began < 3
    else:
        assert made.process.returncode == (130 if number == signal.SIGINT else 0)
        assert last == "stopped"
        assert took < (STOP_LIMIT if stage in ("ready", "request") else 4)


def test_sockets_of_a_long_temporary_folder_go_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = tmp_path / "s"
    short.mkdir()
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    made = Run(long, "load")
    try:
        made.reach()
        sockets = [
            path for path in (*short.iterdir(), *Path("/tmp").glob("gb10-serve-*")) if is_of(made, path)
        ]
        assert len(sockets) == 1
        made.process.kill()
        made.end()
        check_nothing_left(made)
        assert not sockets[0].exists()
    finally:
        made.close()


def is_of(run: Run, folder: Path) -> bool:
    """Whether a short folder for sockets belongs to this run."""
    owner = folder / ".owner"
    return owner.is_symlink() and owner.readlink().is_relative_to(run.temporary)


@pytest.mark.parametrize("stage", ["core", "warm-up", "ready"])
def test_serve_and_keeper_killed_at_once(start: Start, stage: str) -> None:
    made = start(stage)
    made.reach()
    os.kill(made.process.pid, signal.SIGSTOP)
    os.kill(made.keeper, signal.SIGKILL)
    made.process.kill()
    made.end()
    assert made.left(3) == set()


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("import", signal.SIGKILL),
        ("load", signal.SIGKILL),
        ("load", signal.SIGSEGV),
        ("ready", signal.SIGKILL),
        ("request", signal.SIGKILL),
    ],
)
def test_keeper_killed(start: Start, stage: str, number: signal.Signals) -> None:
    made = start(stage)
    made.reach()
    os.kill(made.keeper, number)
    doing = "serving" if stage in ("ready", "request") else "loading"
    assert made.end().startswith(
        f"error: vLLM ended while {doing}: gb10's process gb10-keeper, which vLLM ends with, was killed by "
        f"signal {number.value} ({number.name})"
    )
    assert made.process.returncode == 1
    check_nothing_left(made)


NAMES = {"server": "API server", "core": "EngineCore", "worker": "VllmWorker-0"}


@pytest.mark.parametrize(
    ("stage", "victim"),
    [
        ("import", "server"),
        ("core", "core"),
        ("load", "core"),
        ("load", "worker"),
        ("warm-up", "worker"),
        ("ready", "server"),
        ("ready", "core"),
        ("ready", "worker"),
    ],
)
def test_a_process_of_vllm_is_killed(start: Start, stage: str, victim: str) -> None:
    """What the OOM killer does: the last line names the process, the signal and the memory."""
    made = start(stage)
    made.reach()
    os.kill(int(made.noted(victim)), signal.SIGKILL)
    last = made.end()
    doing = "serving" if stage == "ready" else "loading"
    assert last.startswith(
        f"error: vLLM ended while {doing}: its process {NAMES[victim]} was killed by signal 9 (SIGKILL), "
    ), last
    assert re.search(r"out of memory: ([\d.]+ [MG]iB are free now|the kernel killed)", last)
    assert made.process.returncode == 1
    check_nothing_left(made)


def test_a_crash_is_told_from_a_kill(start: Start) -> None:
    made = start("load")
    made.reach()
    os.kill(int(made.noted("worker")), signal.SIGBUS)
    last = made.end()
    assert (
        "VllmWorker-0 was killed by signal 7 (SIGBUS), perhaps /dev/shm or the disk is full [full log" in last
    )


def test_an_ignored_hangup_stays_ignored(tmp_path: Path) -> None:
    """``nohup gb10 serve &``: the terminal goes, the server stays."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        made = Run(tmp_path, "ready")
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        made.reach()
        made.process.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert made.process.poll() is None
        assert all(alive(pid) for pid in made.pids)
        status = Path(f"/proc/{made.noted('server')}/status").read_text()
        (ignored,) = re.findall(r"^SigIgn:\s*(\w+)", status, re.M)
        assert int(ignored, 16) & 1 << (signal.SIGHUP - 1)
        made.process.terminate()
        assert made.end() == "stopped"
    finally:
        made.close()
