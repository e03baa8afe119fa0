"""`serve-check` against a server that stands for `gb10 serve`: what it must see."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from test_engine_bench_compilers import sleeper

from gb10_lab.cli import main

GB10 = textwrap.dedent(
    '''
    """Stands for `gb10`; FAULT says what is wrong with it."""
    import http.server, json, os, signal, subprocess, sys, threading

    fault = os.environ.get("FAULT", "")
    if sys.argv[1] == "routing":
        ran = {"operation": "nvfp4_moe", "kernel": "gb10 moe_decode", "tokens": 1}
        print(json.dumps([{"log": "", "ran": [ran]}]))
        sys.exit(0)
    if fault == "ends":
        print("gb10: error: no such model")
        sys.exit(2)
    if fault == "hangs":
        open(os.environ["HANGS"], "w").write(str(os.getpid()))
        signal.pause()
    if "GB10_SITE" in os.environ:
        sys.exit("GB10_SITE is not a variable of gb10")

    class Handler(http.server.BaseHTTPRequestHandler):
        count = 0
        def log_message(self, *_): pass
        def answer(self, body):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode() if body else b"")
        def do_GET(self):
            self.answer({"data": [{"id": "m"}]} if "models" in self.path else None)
        def do_POST(self):
            Handler.count += 1
            self.rfile.read(int(self.headers["Content-Length"]))
            text = f" word {Handler.count if fault == 'changes' else 0}"
            self.answer({"choices": [{"text": "" if fault == "empty" else text}]})

    http.server.ThreadingHTTPServer.request_queue_size = 64
    port = int(sys.argv[sys.argv.index("--port") + 1])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    if fault == "compiles":
        subprocess.run([os.environ["PTXAS"], "0.3"])
    if fault == "leaves":
        subprocess.Popen(["sleep", "60"], start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print("ready after 1 s: URL", flush=True)
    if fault == "differs":
        print("NVFP4 experts: the table says A, vLLM chose B", flush=True)
    print("try it:", flush=True)
    server.serve_forever()
    sys.exit(3 if fault == "status" else 0)
    '''
)


def _write(folder: Path) -> None:
    package = folder / "gb10"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(GB10)


def _check(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str, *more: str
) -> tuple[int, dict[str, Any]]:
    _write(folder / "python")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {"FAULT": fault, "PYTHONPATH": str(folder / "python"), "GB10_SITE": "/site"}.items():
        monkeypatch.setenv(name, value)
    status = main(["serve-check", "m", "--out", str(folder), "--port", str(port), "--limit", "30", *more])
    return status, json.loads((folder / "serve.json").read_text())


def test_a_sound_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, found = _check(tmp_path, monkeypatch, "", "--ran", "moe_decode", "--no-compiles")
    assert (status, found["failures"]) == (0, [])
    assert found["answer"] == " word 0"
    assert found["together"] == {"requests": 24, "same as alone": 24}
    assert found["stop"]["status"] == 0
    assert found["stop"]["processes"] == 1
    assert 0 < found["start"]["ready_seconds"] <= found["start"]["first_answer_seconds"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("ends", "it ended with status 2"),
        ("changes", "the same request got"),
        ("empty", "an empty answer"),
        ("leaves", "processes live on: sleep"),
        ("differs", "the routing table differs: NVFP4 experts"),
        ("status", "SIGTERM: exit status 3"),
        ("compiles", "compiled: {'ptxas': 1}"),
    ],
)
def test_each_fault_is_seen(fault: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "compiles":
        monkeypatch.setenv("PTXAS", sleeper(tmp_path, "ptxas"))
    status, found = _check(tmp_path, monkeypatch, fault, "--no-compiles")
    assert status == 1
    assert said in " / ".join(found["failures"])


def test_a_kernel_that_did_not_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, found = _check(tmp_path, monkeypatch, "", "--ran", "moe_decode", "gdn_decode")
    assert (status, found["failures"]) == (1, ["gdn_decode did not run"])


@pytest.mark.parametrize(
    "numbers", [[signal.SIGTERM], [signal.SIGTERM] * 40, [signal.SIGHUP], [signal.SIGKILL]]
)
def test_a_time_limit_around_it_leaves_no_server(numbers: list[signal.Signals], tmp_path: Path) -> None:
    """As `timeout` does: its signal goes to the command and to its group, and the server has another one."""
    _write(tmp_path / "python")
    program = f"""
import os, sys
from gb10_lab.cli import main
import gb10_lab.engine_bench.serve_check
os.environ["PYTHONPATH"] = {str(tmp_path / "python")!r}
sys.exit(main(sys.argv[1:]))
"""
    mark = tmp_path / "hangs"
    words = ["serve-check", "m", "--out", str(tmp_path), "--port", "1", "--limit", "60"]
    environ = os.environ | {"FAULT": "hangs", "HANGS": str(mark)}
    check = subprocess.Popen([sys.executable, "-c", program, *words], env=environ)
    while not (mark.exists() and mark.read_text()):
        assert check.poll() is None
        time.sleep(0.05)
    server = int(mark.read_text())
    for number in numbers:
        check.send_signal(number)
    killed = signal.SIGKILL in numbers
    assert check.wait(20) == (-signal.SIGKILL if killed else 1)
    if killed:
        _gone(server)
    assert not _lives(server)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.02)


ENDED = Path(__file__).parents[3] / "lab" / "gpu" / "ended.sh"


@pytest.mark.parametrize(
    ("runs", "ends"),
    [
        ('limited 60 bash -c "$WORK"', True),
        ('bash -c "$WORK" & waiting=$!; wait $waiting', True),
        ("apart bash -c \". $ENDED; limited 60 bash -c '$WORK'\"", True),
        ('timeout -k 5 60 bash -c "$WORK"', False),
    ],
)
def test_a_time_limit_around_a_script_ends_what_it_runs(runs: str, ends: bool, tmp_path: Path) -> None:
    """The last one is how it was: bash waits, and the inner timeout has a process group of its own."""
    script, mark = tmp_path / "script", tmp_path / "mark"
    script.write_text(f"set -uo pipefail\n. {ENDED}\nstatus=0\n{runs} || status=$?\nexit $status\n")
    work = f"echo $$ >{mark}.part; mv {mark}.part {mark}; exec sleep 30"
    started = subprocess.Popen(
        ["timeout", "-k", "1", "20", "bash", str(script)],
        env=os.environ | {"WORK": work, "ENDED": str(ENDED)},
    )
    try:
        while not mark.exists():
            assert started.poll() is None
            time.sleep(0.02)
        worker = int(mark.read_text())
        started.send_signal(signal.SIGTERM)
        started.wait(20)
        if ends:
            _gone(worker)
        assert _lives(worker) is not ends
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def test_a_script_that_is_not_ended_has_the_status_of_what_it_ran(tmp_path: Path) -> None:
    text = f". {ENDED}; limited 9 bash -c 'exit 7'; echo $?; limited 0.1 sleep 9; echo $?"
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == ["7", "124"]
