"""Start `gb10 serve` as a user does and keep what it prints.

GB10_SERVE_COMMAND (for example "nix run .#serve --") replaces ``python -m gb10 serve``. GB10_TESTBED names
the trained model in BF16; without it that is ``models/testbed`` of the checkout. GB10_DEMO_MODEL names its
NVFP4 form; without it that is made first.
"""

import importlib.util
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from gb10_lab.quality import evaluate
from gb10_lab.testbed.quantize import quantize_checkpoint
from gb10_lab.text.documents import Document

ROOT = Path(__file__).resolve().parents[2]

START_LIMIT = 240.0 * int(os.environ.get("GB10_TEST_SLOWNESS", "1"))
"""Seconds that a start may take on a busy machine. How long it took is in ``Serve.seconds``."""

_SEED = ("MODEL", "HOST", "PORT", "GPU_MEMORY_UTIL", "MAX_MODEL_LEN", "MAX_NUM_SEQS", "TENSOR_PARALLEL_SIZE")


def command() -> list[str]:
    """The command that starts the server, without arguments."""
    given = os.environ.get("GB10_SERVE_COMMAND")
    return shlex.split(given) if given else [sys.executable, "-m", "gb10", "serve"]


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stat(pid: int) -> tuple[str, int]:
    """(state, parent) of a process; ("X", 0) when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return fields[0], int(fields[1])


def descendants(root: int) -> set[int]:
    """Living processes that ``root`` started, itself too."""
    parents = {int(p.name): _stat(int(p.name))[1] for p in Path("/proc").iterdir() if p.name.isdigit()}
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid for pid in found if _stat(pid)[0] not in ("Z", "X")}


def still_alive(pids: set[int], seconds: float) -> set[int]:
    """Those of ``pids`` that live on after at most ``seconds``."""
    deadline = time.monotonic() + seconds
    while (left := {pid for pid in pids if _stat(pid)[0] not in ("Z", "X")}) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


class Serve:
    """A running `gb10 serve`. ``lines`` grows with what it prints; ``seconds`` is the time until ready.

    It starts in ``folder``, after ``enter`` was run in its process.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        variables: dict[str, str],
        folder: Path | None = None,
        enter: Callable[[], None] | None = None,
    ) -> None:
        self.port = free_port()
        self.lines: list[str] = []
        self.seconds = 0.0
        self._ready = threading.Event()
        self._began = time.monotonic()
        self.process = subprocess.Popen(
            [*command(), *arguments, "--port", str(self.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=variables,
            cwd=folder,
            preexec_fn=enter,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("ready after"):
                self.seconds = time.monotonic() - self._began
            elif line.startswith("  curl "):
                # The last line of a start.
                self._ready.set()
        self._ready.set()

    @property
    def text(self) -> str:
        """All that was printed so far."""
        return "\n".join(self.lines)

    @property
    def url(self) -> str:
        """Base address of the OpenAI API."""
        return f"http://127.0.0.1:{self.port}/v1"

    def wait_ready(self) -> None:
        """Wait until all of a start is printed; fail the test with the output when that does not come."""
        if not self._ready.wait(START_LIMIT) or self.seconds == 0:
            log = re.search(r"^log +(\S+)", self.text, re.MULTILINE)
            tail = Path(log[1]).expanduser().read_text(errors="replace")[-3000:] if log else ""
            self.kill()
            pytest.fail(f"gb10 serve did not come up:\n{self.text}\n{tail}")

    def kill(self) -> None:
        """End whatever is left."""
        for pid in descendants(self.process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(30)


@pytest.fixture(scope="session")
def testbed() -> Path:
    """The trained model in BF16."""
    given = os.environ.get("GB10_TESTBED")
    return Path(given) if given else ROOT / "models" / "testbed"


@pytest.fixture(scope="session")
def demo_model(testbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model in NVFP4."""
    given = os.environ.get("GB10_DEMO_MODEL")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("model") / "demo"
    quantize_checkpoint(testbed, folder)
    return folder


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text that the model was not trained on: GB10_HELDOUT, else this project's own sources."""
    if given := os.environ.get("GB10_HELDOUT"):
        return Path(given)
    file = tmp_path_factory.mktemp("text") / "held-out.jsonl"
    with file.open("wb") as lines:
        for source in sorted((ROOT / "python" / "src").rglob("*.py")):
            lines.write(Document("gb10", str(source.relative_to(ROOT)), source.read_text()).line())
    return file


@pytest.fixture(scope="session")
def variables() -> dict[str, str]:
    """One thread (two fight when the machine is busy), and nothing that changes what vLLM does."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("VLLM_") and name != "GB10_DRAFT_VOCABULARY"
    }
    return kept | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def serve_variables(
    demo_model: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, str]:
    """Environment for `gb10 serve`: the CPU engine, the demo model, logs in a temporary folder."""
    if "GB10_SERVE_COMMAND" not in os.environ:
        request.getfixturevalue("registered")
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in _SEED and not name.startswith("VLLM_")
    }
    variables["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    variables["GB10_DEMO_MODEL"] = str(demo_model)
    # Also on a machine with a GPU.
    variables["GB10_PROFILE"] = "cpu"
    if "GB10_SERVE_COMMAND" in os.environ:
        return variables
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    return variables


@pytest.fixture(scope="session")
def start_serve(serve_variables: dict[str, str]) -> Iterator[Callable[..., Serve]]:
    """A function that starts `gb10 serve` with arguments (in a folder) and waits until it is ready.

    Named ones are variables on top of the others.
    """
    started: list[Serve] = []

    def start(*arguments: str, folder: Path | None = None, **variables: str) -> Serve:
        server = Serve(arguments, serve_variables | variables, folder)
        started.append(server)
        server.wait_ready()
        return server

    yield start
    for server in started:
        server.kill()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The reference's matrices are small: threads only wait for each other."""
    with evaluate.one_thread():
        yield
