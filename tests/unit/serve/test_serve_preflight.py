"""Asking vLLM's process before it serves: answers, refusals, death, signals, over a stand-in of it."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gb10.errors import ServerFailed, UserError
from gb10.serve.hide import redact
from gb10.serve.preflight import SOCKET_VARIABLE, Engine, Line, Stopped
from gb10.serve.progress import Progress
from gb10.serve.supervise import Server

ANSWERING = """
    import json, os, select, socket, sys
    end = socket.socket(fileno=int(os.environ["GB10_SERVE_SOCKET"]))
    if sys.argv[1] == '"unread"':
        select.select([end], [], [])
        os.kill(os.getpid(), 9)
    for question in end.makefile():
        asked = json.loads(question)
        if asked["ask"] == "serve":
            print("serves with", asked["keys"], flush=True)
            break
        answer = json.loads(sys.argv[1])
        if answer == "die":
            sys.exit("ValueError: no more")
        if answer == "wait":
            continue
        if answer == "half":
            end.sendall(b'{"host": ')
            os.kill(os.getpid(), 9)
        data = json.dumps(answer).encode() + b"\\n"
        for start in range(0, len(data), 7):
            end.sendall(data[start : start + 7])
"""
VERDICT = '{"host": "::1", "port": 9, "uds": null, "keys": ["a"], "model_tag": null, "ignored": []}'
Start = Callable[[str], tuple[Server, Engine]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a process which gives one answer to every question."""
    servers: list[Server] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}

    def run(answer: str) -> tuple[Server, Engine]:
        ours, theirs = socket.socketpair()
        with theirs:
            server = Server(
                [sys.executable, "-c", textwrap.dedent(ANSWERING), answer],
                {**os.environ, SOCKET_VARIABLE: str(theirs.fileno())},
                tmp_path,
                pass_fds=[theirs.fileno()],
            )
        servers.append(server)
        return server, Engine(Line(ours), server, Progress(), draw=True)

    yield run
    for server in servers:
        server.stop()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_answer(start: Start) -> None:
    _, engine = start(VERDICT)
    verdict = engine.judge(["--x"], configure=True)
    assert (verdict.host, verdict.port, verdict.uds, verdict.keys, verdict.ignored) == (
        "::1",
        9,
        None,
        ("a",),
        (),
    )


def test_facts(start: Start) -> None:
    _, engine = start(
        '{"options": {"-x": "--xx", "--xx": "--xx"}, "several": [], "config": ["--a"], "reports": {}}'
    )
    facts = engine.facts(None, None)
    assert facts.vocabulary.spell("-x") == "--xx"
    assert facts.config == ("--a",)


def test_an_error_is_a_refusal(start: Start) -> None:
    _, engine = start('{"error": "vLLM refuses this: no"}')
    with pytest.raises(UserError, match="vLLM refuses this: no") as caught:
        engine.judge([], configure=True)
    assert caught.value.exit_code == 2


def test_death_is_a_failure(start: Start) -> None:
    _, engine = start('"die"')
    with pytest.raises(ServerFailed, match=r"ended while starting \(exit status 1\): ValueError: no more"):
        engine.judge([], configure=True)


@pytest.mark.parametrize("answer", ['"unread"', '"half"'])
def test_a_kill_before_the_answer_is_told_as_any_other(start: Start, answer: str) -> None:
    """Killed with our question unread the kernel resets the connection, and does not just end it."""
    _, engine = start(answer)
    with pytest.raises(
        ServerFailed, match=r"ended while starting: its process API server was killed by signal 9 \(SIGKILL\)"
    ):
        engine.judge([], configure=True)


def test_the_engine_ends_quietly_when_nobody_asks_any_more() -> None:
    ours, theirs = socket.socketpair()
    line = Line(theirs)
    line.send({"answer": 1})
    ours.close()
    assert line.receive() is None


def test_a_signal_ends_the_waiting(start: Start) -> None:
    server, engine = start('"wait"')
    server.handle_signals()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped):
        engine.judge([], configure=True)


def test_keys_go_through_the_socket(start: Start) -> None:
    server, engine = start(VERDICT)
    with socket.socket() as listener:
        engine.serve(("a", "b"), listener, metrics=False, planned={"planned": []})
    server._process.wait(20)
    assert "serves with ['a', 'b']\n" in server.log_path.read_text()


def test_a_socket_goes_with_a_message() -> None:
    """It is the same socket: bound here, it is bound there."""
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        sender, receiver = Line(ours), Line(theirs)
        sender.send({"first": "x" * 10_000})
        sender.send({"second": 2}, listener)
        assert receiver.receive() == {"first": "x" * 10_000}
        assert receiver.receive() == {"second": 2}
        (received,) = receiver.sockets
        with received:
            assert received.fileno() != listener.fileno()
            assert received.getsockname() == listener.getsockname()
            received.listen()
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


@pytest.mark.parametrize(
    ("arguments", "secrets", "left"),
    [
        (b"serve\0--api-key\0k3y\0", ["k3y"], b"serve\0--api-key\0...\0"),
        (b"--api-key=k3y\0", ["k3y"], b"--api-key=...\0"),
        (b"--vllm-args\0--api-key k3y --seed 1\0", ["k3y"], b"--vllm-args\0--api-key ... --seed 1\0"),
        (b"model\0--api-key\0e\0m.e\0", ["e"], b"model\0--api-key\0.\0m.e\0"),
        (b"a\0abc\0ab\0", ["ab", "abc", ""], b"a\0...\0..\0"),
        ("k\u00e9y\0".encode(), ["k\u00e9y"], b"....\0"),
        (b"k.y\0kay\0", ["k.y"], b"...\0kay\0"),
    ],
)
def test_redaction(arguments: bytes, secrets: list[str], left: bytes) -> None:
    assert redact(arguments, secrets) == left


def test_ps_does_not_see_it() -> None:
    text = (
        "import sys; from gb10.serve.hide import hide_arguments\n"
        "def count(): return open('/proc/self/cmdline').read().count('s3c' + 'ret')\n"
        "before = count(); hide_arguments(sys.argv[1:]); print(before, count(), sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", text, "s3cret"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "1 0 s3cret\n"
