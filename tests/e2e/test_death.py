"""`gb10 serve` with vLLM itself: killed while it loads, its port meanwhile, and a worker that is killed.

tests/unit/serve/test_serve_death.py has every stage and signal, with processes like those of vLLM.
"""

import contextlib
import fcntl
import os
import pty
import re
import signal
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]
from conftest import Serve, command, descendants, free_port, still_alive

GONE_LIMIT = 5.0


def wait_for(serve: Serve, done: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 240
    while not done():
        assert serve.process.poll() is None, serve.text
        assert time.monotonic() < deadline, f"{what}\n{serve.text}"
        time.sleep(0.02)


def worker(serve: Serve) -> int | None:
    """vLLM's worker: the child of the engine core, the child of the API server, the child of the keeper.

    Titles are no sign: setting one fails where the first variable of the environment was changed before.
    """
    line = [serve.process.pid]
    for pid in sorted(descendants(serve.process.pid)):
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            tracker = b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if parent == line[-1] and not tracker:
            line.append(pid)
    if len(line) < 5:
        return None
    # Before the core starts, another process asks for the processors in such a line; that takes no second.
    with contextlib.suppress(psutil.NoSuchProcess):
        if time.time() - psutil.Process(line[4]).create_time() > 1:
            return line[4]
    return None


def leftovers(variables: dict[str, str]) -> list[Path]:
    return list(Path(variables["TMPDIR"]).glob("gb10-serve-*"))


def test_sigkill_while_it_loads_and_the_port_meanwhile(
    serve_variables: dict[str, str], tmp_path: Path
) -> None:
    variables = {**serve_variables, "TMPDIR": str(tmp_path)}
    serve = Serve((), variables)
    try:
        wait_for(serve, lambda: worker(serve), "no worker")
        second = subprocess.run(
            [*command(), "--port", str(serve.port)],
            capture_output=True,
            text=True,
            env=variables,
            timeout=120,
            check=False,
        )
        assert second.returncode == 2
        assert (
            f"port {serve.port} on 127.0.0.1 is in use by another gb10 serve that is loading" in second.stderr
        )
        pids = descendants(serve.process.pid)
        # Supervisor, keeper, API server, engine core, worker.
        assert len(pids) >= 5
        serve.process.kill()
        assert still_alive(pids, GONE_LIMIT) == set()
        assert leftovers(variables) == []
    finally:
        serve.kill()


def test_sigterm_while_it_imports_vllm(serve_variables: dict[str, str], tmp_path: Path) -> None:
    variables = {**serve_variables, "TMPDIR": str(tmp_path)}
    serve = Serve((), variables)
    try:
        wait_for(serve, lambda: leftovers(variables), "no scratch folder")
        time.sleep(1)
        pids = descendants(serve.process.pid)
        assert len(pids) >= 3
        began = time.monotonic()
        serve.process.send_signal(signal.SIGTERM)
        assert serve.process.wait(GONE_LIMIT) == 0
        assert time.monotonic() - began < GONE_LIMIT
        assert still_alive(pids, 0.0) == set()
        assert leftovers(variables) == []
        assert serve.lines[-1] == "stopped"
    finally:
        serve.kill()


def test_control_c_in_a_terminal(serve_variables: dict[str, str]) -> None:
    """The terminal draws ^C where the cursor is; what we say comes on a line of its own."""
    ours, theirs = pty.openpty()
    line = [*command(), "--port", str(free_port())]
    process = subprocess.Popen(
        line, stdin=theirs, stdout=theirs, stderr=theirs, env=serve_variables, preexec_fn=take_terminal
    )
    os.close(theirs)
    drawn = b""
    try:
        while b" s  " not in drawn:
            drawn += os.read(ours, 1000)
        time.sleep(1)
        os.write(ours, b"\x03")
        with contextlib.suppress(OSError):
            while more := os.read(ours, 1000):
                drawn += more
        assert process.wait(GONE_LIMIT) == 130
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"^C" in drawn
    assert drawn.endswith(b"\r\nstopped\r\n"), drawn[-200:]


def take_terminal() -> None:
    """Make standard input the terminal of a new session, where Ctrl-C counts.

    A test run in the background ignores it, and what it starts would, too.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_killed_worker_is_named(serve_variables: dict[str, str]) -> None:
    serve = Serve((), serve_variables)
    try:
        wait_for(serve, lambda: worker(serve), "no worker")
        victim = worker(serve)
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        assert serve.process.wait(60) == 1
        deadline = time.monotonic() + 5
        while "error" not in serve.text and time.monotonic() < deadline:
            time.sleep(0.05)
        assert re.search(
            r"while loading: its process VllmWorker-0 was killed by signal 9 \(SIGKILL\), .*out of memory",
            serve.lines[-1],
        )
    finally:
        serve.kill()
