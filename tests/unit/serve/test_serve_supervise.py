"""Running a server process: readiness, its death, signals, and that nothing is left behind."""

import io
import os
import signal
import socket
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gb10.errors import MemoryShort, ServerFailed, UserError
from gb10.machine.watch import Board
from gb10.serve.progress import Progress
from gb10.serve.supervise import Server, family


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


API = """
    import http.server, json, os, subprocess, sys, time
    mode, port = sys.argv[1], int(sys.argv[2])
    print("Starting to load model x", flush=True)
    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, code, body):
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        def do_GET(self):
            if mode == "key" and self.headers.get("Authorization") != "Bearer k" and self.path != "/health":
                return self.answer(401, {})
            self.answer(200, {"data": [{"id": "m"}]})
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            if mode == "die":
                print("ValueError: engine is gone", flush=True)
                os._exit(3)
            if mode == "dying":
                self.answer(500, {})
                self.wfile.flush()
                time.sleep(1)
                print("ValueError: engine is gone", flush=True)
                os._exit(3)
            self.answer(500 if mode == "broken" else 200, {})
        def log_message(self, *a): pass
    http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

Start = Callable[..., Server]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "state" / "gb10" / "serve"


@pytest.fixture
def start(logs: Path) -> Iterator[Start]:
    """A function that runs Python text as a server; it is stopped at the end of the test."""
    servers: list[Server] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}

    def run(text: str, *arguments: str) -> Server:
        server = Server([sys.executable, "-c", textwrap.dedent(text), *arguments], dict(os.environ), logs)
        servers.append(server)
        return server

    yield run
    for server in servers:
        server.stop()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_start_that_leaves_too_little_memory(start: Start) -> None:
    """As vLLM answers then: not with a token."""
    port = free_port()
    server = start(API, "broken", str(port))
    Board(str(server._scratch.path / "memory"), write=True).write("1 MiB is free")
    with pytest.raises(
        MemoryShort, match="vLLM is loaded and takes no requests: 1 MiB is free; free memory, or"
    ):
        server.wait_ready(f"http://127.0.0.1:{port}", None, Progress())


def test_its_temporary_files_go_with_it(start: Start) -> None:
    server = start(
        """
        import pathlib, tempfile, time
        left = pathlib.Path(tempfile.gettempdir(), "left-behind")
        left.touch()
        print(left, flush=True)
        time.sleep(60)
        """
    )
    while not (lines := list(server.new_lines())):
        time.sleep(0.05)
    left = Path(lines[0].strip())
    assert left.exists()
    server.stop()
    assert not left.parent.exists()


@pytest.mark.parametrize(("mode", "key"), [("plain", None), ("key", "k")])
def test_ready_when_it_answers(start: Start, mode: str, key: str | None) -> None:
    port = free_port()
    server = start(API, mode, str(port))
    assert server.wait_ready(f"http://127.0.0.1:{port}", key, Progress()) == "m"


def test_death_at_the_first_token_is_a_failure(start: Start) -> None:
    port = free_port()
    server = start(API, "die", str(port))
    with pytest.raises(
        ServerFailed,
        match=r"ended while .*\(exit status 3\): ValueError: engine is gone \[full log: .*\.log\]",
    ):
        server.wait_ready(f"http://127.0.0.1:{port}", None, Progress())


def test_error_at_the_first_token_is_a_failure(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gb10.serve.supervise._DEATH_WAIT", 0.5)
    port = free_port()
    server = start(API, "broken", str(port))
    with pytest.raises(ServerFailed, match="is up and does not answer: HTTP 500"):
        server.wait_ready(f"http://127.0.0.1:{port}", None, Progress())


def test_death_while_loading_names_the_error_and_the_log(start: Start) -> None:
    server = start("import sys; print('x'); sys.exit('KeyError: no such model')")
    with pytest.raises(ServerFailed) as caught:
        server.wait_ready("http://127.0.0.1:9", None, Progress())
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("vLLM ended while loading (exit status 1): KeyError: no such model [full log: ")
    assert Path(text.rpartition("full log: ")[2].rstrip("]")).read_text() == "x\nKeyError: no such model\n"
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "print('Shutting down'); print('INFO: 1.2.3.4:5 - \"GET /health HTTP/1.1\" 200 OK')",
            r"(exit status 0): its log names no error and ends with: Shutting down; perhaps somebody sent it "
            "SIGTERM [full log: ",
        ),
        ("raise SystemExit(4)", "(exit status 4): its log says nothing [full log: "),
    ],
)
def test_an_end_without_an_error(start: Start, code: str, said: str) -> None:
    server = start(code)
    with pytest.raises(ServerFailed) as caught:
        server.wait_ready("http://127.0.0.1:9", None, Progress())
    assert said in str(caught.value)


def test_killed_by_the_kernel_is_said(start: Start) -> None:
    server = start("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(ServerFailed, match=r"its process API server was killed by signal 9 \(SIGKILL\), "):
        server.wait_ready("http://127.0.0.1:9", None, Progress())


SLEEP = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
ORPHAN = f"""
import subprocess, sys
grand = subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
print("orphan", grand.pid, flush=True)
"""
STUBBORN = f"""
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
subprocess.run([sys.executable, "-c", {ORPHAN!r}])
print("self", os.getpid(), "child", child.pid, flush=True)
time.sleep(600)
"""


def pids_of(server: Server, count: int) -> list[int]:
    deadline = time.monotonic() + 20
    found: list[int] = []
    while len(found) < count and time.monotonic() < deadline:
        found += [int(word) for line in server.new_lines() for word in line.split() if word.isdigit()]
        time.sleep(0.05)
    return found


def test_stop_leaves_nothing_even_of_the_stubborn(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gb10.serve.supervise.TERM_GRACE", 0.5)
    server = start(STUBBORN)
    pids = pids_of(server, 3)
    assert len(pids) == 3
    assert all(alive(pid) for pid in pids)
    assert set(pids) <= set(family(server._process.pid))
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 5
    assert not [pid for pid in pids if alive(pid)]


def test_a_child_that_outlives_the_server_is_ended(start: Start) -> None:
    server = start("""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print("child", child.pid, flush=True)
    """)
    (pid,) = pids_of(server, 1)
    server._process.wait(10)
    assert server.exit_code == 0
    assert not alive(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_asks_for_the_end(start: Start, number: signal.Signals) -> None:
    server = start("import time; time.sleep(600)")
    server.handle_signals()
    os.kill(os.getpid(), number)
    assert server.wait_ready("http://127.0.0.1:9", None, Progress()) is None
    server.wait()
    assert server.stopping == number


def test_signals_that_come_together_are_one_and_a_later_one_kills(start: Start) -> None:
    server = start(STUBBORN)
    assert len(pids_of(server, 3)) == 3
    server.handle_signals()
    for _ in range(20):
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.6)
    assert server.exit_code is None
    for number in (signal.SIGINT, *[signal.SIGTERM] * 20):
        os.kill(os.getpid(), number)
    assert server._process.wait(3) == 128 + signal.SIGKILL
    assert server.stopping == signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_an_ignored_signal_stays_ignored(start: Start, number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    server = start("import time; time.sleep(600)")
    server.handle_signals()
    assert signal.getsignal(number) is signal.SIG_IGN


def test_a_refusal_in_the_log_is_bad_input(start: Start) -> None:
    """The line comes from vLLM's process while it loads; it is not waited for its end."""
    server = start("""
        import os, time
        us = f"gb10[{os.environ['GB10_LOG_WORD']}]: "
        print(f"(Worker pid=7) ERROR 11-22 14:36:19 [x.py:1] {us}refused: lm_head is not there", flush=True)
        time.sleep(600)
    """)
    with pytest.raises(UserError) as caught:
        server.wait_ready("http://127.0.0.1:9", None, Progress())
    assert str(caught.value) == "lm_head is not there"
    assert caught.value.exit_code == 2


def test_a_server_that_turns_red_says_so(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    """A client can make vLLM log its line ends, and what looks like our line behind them."""
    server = start("""
        import os, time
        logged = "(APIServer pid=7) ERROR 11-22 14:36:19 [health.py:41] "
        print(f"{logged}asked: x\\n{logged}gb10: unhealthy: forged", flush=True)
        print(f"{logged}asked: gb10[1234]: unhealthy: forged", flush=True)
        print(f"{logged}gb10[{os.environ['GB10_LOG_WORD']}]: unhealthy: not a number", flush=True)
        time.sleep(1)
        raise ValueError("that is all")
    """)
    with pytest.raises(ServerFailed, match="that is all"):
        server.wait()
    said = capsys.readouterr().out
    assert said == "unhealthy: not a number (/health says so; a restart is needed)\n"


FORGED = """
    import os, sys
    us = f"gb10[{os.environ['GB10_LOG_WORD']}]: "
    info = "(APIServer pid=7) INFO 11-22 14:36:19 [logger.py:12] "
    print("Starting to load model /m", flush=True)
    if OPENS:
        print(f"(APIServer pid=7) {us}the server opens", flush=True)
    print(f"{info}Received request: x", flush=True)
    asked = ["Capturing CUDA graphs: 5%", "gb10: requantised 1 matrices", "gb10: canary: 1 tokens", *MORE]
    for line in asked:
        print(info + line, flush=True)
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("opens", "stage"), [(True, "opening the API"), (False, "capturing CUDA graphs 5 %")]
)
def test_what_clients_send_is_no_stage(start: Start, opens: bool, stage: str) -> None:
    """Before the server opens the same lines are vLLM's own."""
    server = start(FORGED.replace("OPENS", str(opens)).replace("*MORE", ""))
    out = io.StringIO()
    show = Progress(out)
    with pytest.raises(ServerFailed):
        server.wait_ready("http://127.0.0.1:9", None, show)
    assert show.stage == stage
    assert ("requantised" in out.getvalue()) is not opens


def test_what_clients_send_is_no_cause(start: Start) -> None:
    more = "'MemoryError: mine', 'what(): mine', 'x.cpp:1:1: fatal error: mine'"
    server = start(FORGED.replace("OPENS", "True").replace("*MORE", more))
    with pytest.raises(ServerFailed, match="its log names no error"):
        server.wait_ready("http://127.0.0.1:9", None, Progress())


def test_an_error_of_a_dying_server_is_not_the_cause(start: Start) -> None:
    port = free_port()
    server = start(API, "dying", str(port))
    with pytest.raises(ServerFailed, match=r"\(exit status 3\): ValueError: engine is gone \[full log"):
        server.wait_ready(f"http://127.0.0.1:{port}", None, Progress())


def test_files_are_passed_on_and_let_go(start: Start, logs: Path) -> None:
    """Who waits for the end of a pipe that vLLM holds must not wait for the keeper."""
    reading, writing = os.pipe()
    text = f"import os; os.write({writing}, b'x'); os.close({writing}); import time; time.sleep(600)"
    server = Server([sys.executable, "-c", text], dict(os.environ), logs, pass_fds=[writing])
    try:
        os.close(writing)
        assert os.read(reading, 1) == b"x"
        assert os.read(reading, 1) == b""
    finally:
        server.stop()
        os.close(reading)
