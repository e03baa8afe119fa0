"""Ray, for vLLM's executor of that name: this node's part of a cluster that lives as long as `gb10 serve`.

The head starts Ray's head, every other node joins it, and the head's vLLM places its ranks where Ray has room
for them. ``ray start`` runs in the foreground, as a child of vLLM's process: it ends with that.

Like vLLM's own connections Ray's prove nothing of who calls, and who calls can run code: they belong into a
network that nobody else is in (docs/security.md).
"""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gb10.errors import UserError
from gb10.serve import isolation

BACKEND = "ray"
"""vLLM's name for the executor."""

ADDRESS = "RAY_ADDRESS"
"""The variable in which Ray's programs find a cluster."""

OBJECTS = 100_000_000
"""Bytes of Ray's store in /dev/shm: vLLM's messages take other ways, and Ray would take a third of memory."""

FOLDER_LIMIT = 38
"""Bytes of a folder below which Ray's sockets can have their names."""

VARIABLES = {
    # Nothing is reported to Ray's makers.
    "RAY_USAGE_STATS_ENABLED": "0",
    # It would kill workers at 95 % of memory, which a model may take: `gb10.serve.keeper` looks at memory.
    "RAY_memory_monitor_refresh_ms": "0",
    # It would first wait half a minute for work to end, which ends with vLLM.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

_POLL = 0.25
_GRACE = 3.0
"""Seconds that Ray's processes get after SIGTERM."""


@dataclass(frozen=True)
class Start:
    """``ray start`` on one node: Ray's head at ``master``:``port``, this node at ``address``.

    ``ranks`` are the ranks that it takes, ``cpu`` whether they run on the CPU.
    """

    is_head: bool
    master: str
    port: int
    address: str
    ranks: int
    cpu: bool

    @property
    def place(self) -> str:
        """The head's address, as Ray writes it."""
        return f"[{self.master}]:{self.port}" if ":" in self.master else f"{self.master}:{self.port}"

    def words(self, folder: Path) -> list[str]:
        """The command, whose files go into ``folder``."""
        # More processors than one would each get an idle process of 100 MB; vLLM's workers ask for none.
        words = ["--block", f"--node-ip-address={self.address}", "--num-cpus=1"]
        if self.cpu:
            # By gb10.vllm_plugin.cpu.ray, whose import would take vLLM's.
            words += ["--num-gpus=0", f'--resources={{"vllm_cpu": {self.ranks}}}']
        else:
            words += [f"--num-gpus={self.ranks}"]
        words += [f"--object-store-memory={OBJECTS}", f"--temp-dir={folder}"]
        words += ["--disable-usage-stats", "--log-style=record", "--log-color=false"]
        if self.is_head:
            words += ["--head", f"--port={self.port}", "--include-dashboard=false"]
            # For clients of Ray's own, of which there are none; Ray has no word to leave it out.
            # The port before is gb10's link's.
            words += [f"--ray-client-server-port={self.port + 2}"]
        else:
            words += [f"--address={self.place}"]
        return [*isolation.interpreter(), "-m", "ray.scripts.scripts", "start", *words]


def check() -> None:
    """Raise UserError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            f"--distributed-executor-backend {BACKEND}: this build has no Ray; leave it out (vLLM serves on "
            "several nodes without), or take serve-ray or serve-cuda-ray (images: gb10-cpu-ray, gb10-ray)"
        )


def check_address(variables: Mapping[str, str]) -> None:
    """Raise UserError where no cluster of Ray's is named: vLLM would start one, and wait half an hour."""
    if not variables.get(ADDRESS):
        raise UserError(
            f"--distributed-executor-backend {BACKEND} needs nodes: --nnodes N, --node-rank R and "
            f"--master-addr A on each of them, or {ADDRESS}=HOST:PORT of a Ray cluster that runs"
        )


def _answers(start: Start) -> bool:
    try:
        socket.create_connection((start.master, start.port), timeout=1).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder whose path is short enough for the sockets in it, for as long as the block runs."""
    found = Path(tempfile.gettempdir())
    parent = found if len(os.fsencode(found)) + 6 <= FOLDER_LIMIT else Path("/tmp")
    with tempfile.TemporaryDirectory(prefix="r-", dir=parent, ignore_cleanup_errors=True) as made:
        yield Path(made)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running(start: Start | None) -> Iterator["subprocess.Popen[bytes] | None"]:
    """This node's Ray, which ends with the block; nothing without a ``start``.

    The head has its address in `ADDRESS` then. Other nodes wait for the head: how long is bounded by
    `gb10.serve.link`. Raises RuntimeError where Ray ends before it is up.
    """
    if start is None:
        yield None
        return
    os.environ.update({name: os.environ.get(name, value) for name, value in VARIABLES.items()})
    while not start.is_head and not _answers(start):
        time.sleep(_POLL)
    with _folder() as folder:
        process = subprocess.Popen(start.words(folder), stdin=subprocess.DEVNULL)
        try:
            while start.is_head and not _answers(start):
                if process.poll() is not None:
                    raise RuntimeError(_ended(process.returncode))
                time.sleep(_POLL)
            os.environ[ADDRESS] = start.place
            yield process
        finally:
            _end(process)


def _ended(code: int) -> str:
    how = f"exit status {code}" if code >= 0 else f"signal {-code} ({signal.Signals(-code).name})"
    return f"Ray on this node ended ({how})"


def stay(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the end of this node's Ray, which is an error: RuntimeError."""
    raise RuntimeError(_ended(process.wait()))
