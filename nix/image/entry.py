"""What an image starts: ``[ROLE] [ARGUMENT…]``, as process 1 of the container.

Roles: ``serve`` (default), ``ray-head``, ``ray-worker``, ``bash``, ``doctor``, ``download``. Arguments are
passed on as they are. What the container lacks is one line and exit status 2, before anything starts. As
process 1 it passes signals on, and waits for whatever process is left to it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

GRACE = 8.0
"""Seconds between SIGTERM and SIGKILL: Docker and Podman wait for 10, then all is lost."""

SHARED_MEMORY = 160 << 20
"""Bytes of /dev/shm that vLLM's processes talk through (measured); a container has 64 MiB unless told."""

HELP = frozenset({"-h", "--help"})

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class UserError(Exception):
    """What the user should change, in one line."""


@dataclass(frozen=True)
class Container:
    """Where things are, and the variables; a test has others."""

    variables: Mapping[str, str]
    shared_memory: Path = Path("/dev/shm")
    temporary: Path = Path("/tmp")
    programs: Path = Path(sys.executable).parent
    """The environment's."""

    @property
    def cache(self) -> Path:
        """What is kept between two containers: models and what was compiled."""
        return Path(self.variables.get("XDG_CACHE_HOME") or "/cache")


def writable(folder: Path) -> bool:
    """Whether a file can be made there."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        return False
    return True


def check_folders(container: Container) -> None:
    """The cache, the temporary folder and the shared memory do."""
    cache, temporary = container.cache, container.temporary
    if not writable(cache):
        raise UserError(
            f"the cache folder {cache} cannot be written by user {os.getuid()}; mount a volume there "
            f"(-v gb10-cache:{cache}), or one that this user owns"
        )
    if not writable(temporary):
        raise UserError(f"{temporary} cannot be written; with a read-only root add --tmpfs {temporary}:exec")
    for folder in (temporary, cache):
        if os.statvfs(folder).f_flag & os.ST_NOEXEC:
            raise UserError(
                f"{folder} is mounted noexec, and compiled code is loaded from it; mount it with exec"
            )
    try:
        found = os.statvfs(container.shared_memory)
        size = found.f_blocks * found.f_frsize
    except OSError:
        size = 0
    if size < SHARED_MEMORY:
        raise UserError(
            f"{container.shared_memory} has {size >> 20} MiB, and vLLM needs {SHARED_MEMORY >> 20}; "
            "start the container with --shm-size=1g (Kubernetes: an emptyDir with medium: Memory there)"
        )


def check_variables(container: Container) -> None:
    """No variable that only looks like one of ours, and no token that the hub would refuse."""
    for name in ("GB10_PORT", "PORT", "RAY_PORT"):
        if "://" in (value := container.variables.get(name, "")):
            raise UserError(
                f"{name} is {value!r}, as Kubernetes sets it for a service called "
                f"{name[:-5].lower() or 'port'}; set enableServiceLinks: false in the pod, or rename it"
            )
    token = container.variables.get("HF_TOKEN", "")
    if token and (token != token.strip() or not token.isascii() or not token.isprintable() or " " in token):
        raise UserError(
            "HF_TOKEN has blanks, quotes' remains or a line's end in it; give the token alone (hf_…)"
        )
    if "'" in token or '"' in token:
        raise UserError("HF_TOKEN has a quote in it; give the token alone (hf_…)")


CHECKS = (check_variables, check_folders)
"""What a server needs."""


def serve(container: Container, arguments: Sequence[str]) -> list[str]:
    """``gb10 serve``. Its help needs nothing of the container."""
    for check in CHECKS if not HELP.intersection(arguments) else ():
        check(container)
    return [container.variables["GB10_IMAGE_SERVE"], *arguments]


def on_ray(container: Container, role: str, rank: str, arguments: Sequence[str]) -> list[str]:
    """``gb10 serve`` as the node ``rank`` of Ray, which an image has or has not. The head is at HEAD_IP."""
    if HELP.intersection(arguments):
        return serve(container, arguments)
    variables = container.variables
    if shutil.which("ray", path=str(container.programs)) is None:
        raise UserError(
            "this image has no Ray; take gb10-ray or gb10-cpu-ray, or the role serve with --nnodes, "
            "--node-rank and --master-addr: vLLM serves on several hosts without"
        )
    if not (head := variables.get("HEAD_IP")):
        raise UserError(f"HEAD_IP is not set; {role} needs the address of the host that runs ray-head")
    nodes = ["--nnodes", variables.get("NODES") or "2", "--node-rank", rank, "--master-addr", head]
    port = ["--master-port", variables.get("RAY_PORT") or "6379", "--distributed-executor-backend", "ray"]
    return serve(container, [*arguments, *nodes, *port])


def ray_head(container: Container, arguments: Sequence[str]) -> list[str]:
    """Ray's head, and the API."""
    return on_ray(container, "ray-head", "0", arguments)


def ray_worker(container: Container, arguments: Sequence[str]) -> list[str]:
    """Another node of Ray: number NODE_RANK."""
    rank = container.variables.get("NODE_RANK") or "1"
    return on_ray(container, "ray-worker", rank, [*arguments, "--headless"])


def shell(container: Container, arguments: Sequence[str]) -> list[str]:
    """A shell, for a look around."""
    return [container.variables["GB10_IMAGE_SHELL"], *arguments]


def doctor(container: Container, arguments: Sequence[str]) -> list[str]:
    """``gb10 doctor``: what of the machine, as far as the container shows it, stops a server. None starts."""
    return [container.variables["GB10_IMAGE_DOCTOR"], *arguments]


def download(container: Container, arguments: Sequence[str]) -> list[str]:
    """``gb10 download``: a model of the hub into the cache, which is the volume. It needs no GPU."""
    return [sys.executable, "-I", "-m", "gb10", "download", *arguments]


ROLES: dict[str, Callable[[Container, Sequence[str]], list[str]]] = {
    "serve": serve,
    "ray-head": ray_head,
    "ray-worker": ray_worker,
    "bash": shell,
    "doctor": doctor,
    "download": download,
}


def command_of(container: Container, arguments: Sequence[str]) -> list[str]:
    """The command of a role; ``--option`` without a role is for ``serve``."""
    role, rest = (arguments[0], arguments[1:]) if arguments else ("serve", [])
    if role.startswith("-"):
        role, rest = "serve", arguments
    if role not in ROLES:
        raise UserError(f"{role!r} is no role; the first word is one of {', '.join(ROLES)}")
    return ROLES[role](container, rest)


def run(command: Sequence[str], variables: Mapping[str, str], grace: float = GRACE) -> int:
    """Run a command as process 1 must: signals go on to it, and orphans are waited for. Its exit status."""
    child = 0
    early: list[int] = []
    ending = False

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal ending
        if not child:
            early.append(number)
            return
        # Not by its object, which would first look whether it has ended, and take the status from below.
        with suppress(ProcessLookupError):
            os.kill(child, number)
        if number in (signal.SIGTERM, signal.SIGINT) and not ending:
            ending = True
            signal.setitimer(signal.ITIMER_REAL, grace)

    def kill(_number: int, _frame: FrameType | None) -> None:
        print(f"gb10: not ended {grace:.0f} s after the signal; killed", file=sys.stderr)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    # Before the command: process 1 ignores a signal that it has no handler for.
    for number in PASSED_ON:
        signal.signal(number, pass_on)
    signal.signal(signal.SIGALRM, kill)
    process = subprocess.Popen(command, env=dict(variables))
    child = process.pid
    for came in early:
        pass_on(came, None)
    while True:
        pid, status = os.wait()
        if pid == child:
            process.returncode = code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def main(arguments: Sequence[str]) -> int:
    """Start what the role says."""
    container = Container(os.environ)
    try:
        command = command_of(container, arguments)
    except UserError as error:
        print(f"gb10: error: {error}", file=sys.stderr)
        return 2
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GB10_IMAGE_")}
    if command[0] == os.environ.get("GB10_IMAGE_SHELL") and os.isatty(0):
        # It waits for orphans itself, and wants the terminal. Python ignores SIGPIPE, its programs must not.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execve(command[0], command, variables)
    return run(command, variables)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
