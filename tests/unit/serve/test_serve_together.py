"""A server among several nodes, with processes like those of vLLM: what it says and does when one ends."""

import os
import signal
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_serve_supervise import alive, free_port

from gb10.errors import ServerFailed, UserError
from gb10.serve import supervise
from gb10.serve.link import Kind, Trouble
from gb10.serve.progress import Progress
from gb10.serve.supervise import ANSWER_WAIT, Server

STAND_IN = Path(__file__).with_name("stand_in.py")

GONE = Trouble(Kind.GONE, "node 1 (10.0.0.2) is gone")
SILENT = Trouble(Kind.SILENT, "node 1 (10.0.0.2) has said nothing for 10 s")
REFUSED = Trouble(Kind.REFUSED, "the head refuses this node: it is another one")


class Others:
    """In place of a `gb10.serve.link.Link`: the test says what becomes of the other nodes."""

    def __init__(self, *, head: bool = True) -> None:
        self.is_head = head
        self.trouble: Trouble | None = None
        self.state = "loading"
        self.said: list[tuple[float, str, str]] = []

    def others(self, state: str) -> bool:
        return self.state == state

    def wait(self, _: float) -> Trouble | None:
        return self.trouble

    def say(self, state: str, why: str = "") -> None:
        self.said.append((time.monotonic(), state, why))


class Running:
    """A server that has answered, its processes by name, and the other nodes."""

    def __init__(self, logs: Path, command: list[str], others: Others) -> None:
        self.others = others
        self.server = Server([sys.executable, *command], dict(os.environ), logs)
        self.server.link = others  # type: ignore[assignment]


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that runs a Python program as a server; it is stopped at the end of the test."""
    made: list[Running] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}

    def run(*command: str, head: bool = True) -> Running:
        running = Running(tmp_path / "logs", list(command), Others(head=head))
        made.append(running)
        return running

    yield run
    for running in made:
        running.server.stop()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def serving(start: Start, tmp_path: Path) -> tuple[Running, int, dict[str, int]]:
    """A head that serves: it, its port, and the pids of its processes."""
    port, notes = free_port(), tmp_path / "notes"
    running = start(str(STAND_IN), str(port), "all", str(notes))
    assert running.server.wait_ready(f"http://127.0.0.1:{port}", None, Progress()) == "m"
    rows = [line.split() for line in notes.read_text().splitlines()]
    return running, port, {row[0]: int(row[1]) for row in rows if row[0] in ("server", "core", "worker")}


def later(seconds: float, act: Callable[[], object]) -> None:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()


def trouble_of(running: Running, trouble: Trouble) -> Callable[[], None]:
    def act() -> None:
        running.others.trouble = trouble

    return act


def test_a_node_that_is_cut_off_ends_what_would_wait_for_it(
    serving: tuple[Running, int, dict[str, int]],
) -> None:
    """The engine core is killed, so that the API server ends and its clients get an answer."""
    running, port, pids = serving
    client: list[float] = []

    def ask() -> None:
        body = b'{"prompt": "slow"}'
        with pytest.raises((urllib.error.URLError, OSError)):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/completions", data=body, timeout=60)
        client.append(time.monotonic())

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    time.sleep(0.5)
    assert alive(pids["core"]) and not client
    began = time.monotonic()
    running.others.trouble = SILENT
    with pytest.raises(ServerFailed) as caught:
        running.server.wait()
    assert str(caught.value) == f"{SILENT.text} [full log: {running.server.log_path}]"
    assert time.monotonic() - began < ANSWER_WAIT / 2
    thread.join(5)
    assert client and client[0] - began < ANSWER_WAIT / 2
    assert not any(map(alive, pids.values()))


def test_a_node_that_is_gone_gives_vllm_time_to_answer(
    serving: tuple[Running, int, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its engine notices by itself, and is not killed; where it does not, all is ended after a while."""
    running, _, pids = serving
    monkeypatch.setattr(supervise, "ANSWER_WAIT", 1.0)
    began = time.monotonic()
    running.others.trouble = GONE
    with pytest.raises(ServerFailed, match="is gone"):
        running.server.wait()
    assert 1.0 <= time.monotonic() - began < 3
    assert alive(pids["core"])
    running.server.stop()
    assert not any(map(alive, pids.values()))


def test_the_others_hear_at_once_who_was_killed(serving: tuple[Running, int, dict[str, int]]) -> None:
    """Before vLLM has ended over it, and what they then say of themselves is no cause."""
    running, _, pids = serving
    later(0.3, lambda: os.kill(pids["worker"], signal.SIGKILL))
    later(0.6, trouble_of(running, GONE))
    with pytest.raises(
        ServerFailed, match="vLLM ended while serving: its process VllmWorker-0 was killed by"
    ):
        running.server.wait()
    ((_, state, why),) = running.others.said
    assert state == "failed" and why.startswith("its process VllmWorker-0 was killed by signal 9 (SIGKILL)")


def test_an_end_over_another_node_names_that(start: Start) -> None:
    """vLLM's own words would blame the connection."""
    running = start("-c", "import time; time.sleep(0.5); print('RuntimeError: Connection reset by peer')")
    later(0.1, trouble_of(running, GONE))
    with pytest.raises(ServerFailed, match="is gone"):
        running.server.wait_ready("http://127.0.0.1:1", None, Progress())
    assert running.server.failure("loading").args[0].startswith(GONE.text)


def test_trouble_while_it_loads_ends_it_at_once(start: Start) -> None:
    running = start("-c", "import time; time.sleep(600)")
    began = time.monotonic()
    later(0.3, trouble_of(running, GONE))
    with pytest.raises(ServerFailed, match="is gone"):
        running.server.wait_ready("http://127.0.0.1:1", None, Progress())
    assert time.monotonic() - began < 2


JOINS = textwrap.dedent(
    """
    import os, sys, time
    from gb10.vllm_plugin import log
    print("gb10: this node has joined the others", flush=True)  # anybody's words
    time.sleep(float(sys.argv[1]))
    print(log.ours(log.JOINED), flush=True)
    time.sleep(600)
    """
)


def test_a_node_without_an_api_is_ready_with_the_head(start: Start) -> None:
    running = start("-c", JOINS, "0.5", head=False)
    began = time.monotonic()

    def ready() -> None:
        running.others.state = "ready"

    later(1.0, ready)
    assert running.server.wait_joined(Progress())
    assert 0.9 < time.monotonic() - began < 5
    running.others.trouble = SILENT
    began = time.monotonic()
    with pytest.raises(ServerFailed, match="has said nothing"):
        running.server.wait()
    assert time.monotonic() - began < 1, "it has no clients that wait for an answer"


def test_a_head_that_is_ready_before_this_node_joined(start: Start) -> None:
    running = start("-c", JOINS, "1.5", head=False)
    running.others.state = "ready"
    began = time.monotonic()
    assert running.server.wait_joined(Progress())
    assert time.monotonic() - began > 1.4, "only a line with this start's word counts"


def test_a_node_that_is_refused_is_bad_input(start: Start) -> None:
    running = start("-c", JOINS, "0", head=False)
    running.others.trouble = REFUSED
    with pytest.raises(UserError) as caught:
        running.server.wait_joined(Progress())
    assert caught.value.exit_code == 2


def test_a_signal_ends_the_wait_for_the_head(start: Start) -> None:
    running = start("-c", JOINS, "0", head=False)
    running.server.handle_signals()
    later(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert not running.server.wait_joined(Progress())
    assert running.server.stopping == signal.SIGTERM


def test_a_node_whose_vllm_ends_says_why(start: Start) -> None:
    running = start("-c", "print('ValueError: no such model'); raise SystemExit(1)", head=False)
    with pytest.raises(
        ServerFailed, match=r"vLLM ended while loading .exit status 1.: ValueError: no such mod"
    ):
        running.server.wait_joined(Progress())
