"""What nodes tell each other, over real sockets: who comes, who is refused, who is gone, and how soon."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from gb10.errors import ServerFailed, UserError
from gb10.serve.link import BEAT, HELLO_LIMIT, Kind, Link, Trouble
from gb10.serve.nodes import Nodes

SAME = {"gb10": "1", "model": "m 0123"}
LIMIT = 3.0


def two_free_ports() -> int:
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


class Ring:
    """Links of one model; they are closed at the end."""

    def __init__(self, count: int = 2) -> None:
        self.count, self.port = count, two_free_ports()
        self.links: list[Link] = []
        self.told: list[str] = []

    def join(self, rank: int, identity: dict[str, str] = SAME, patience: float = 60.0) -> Link:
        nodes = Nodes(self.count, rank, "127.0.0.1", self.port, f"127.0.0.{rank + 1}", "lo")
        link = Link(nodes, identity, limit=LIMIT, patience=patience, tell=self.told.append)
        self.links.append(link)
        return link

    def stranger(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port + 1), timeout=10)


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring()
    yield made
    for link in made.links:
        link.close()


def until(done: Callable[[], object], seconds: float = 10.0) -> float:
    """Wait until it is so; the seconds that took."""
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < seconds
        time.sleep(0.02)
    return time.monotonic() - began


def trouble(link: Link, seconds: float = 10.0) -> Trouble:
    found = link.wait(seconds)
    assert found is not None
    return found


@pytest.mark.parametrize("first", [0, 1])
def test_they_meet_whoever_comes_first(ring: Ring, first: int) -> None:
    early = ring.join(first)
    assert early.missing == [1 - first]
    late = ring.join(1 - first)
    until(lambda: not early.missing and not late.missing)
    assert ring.told == ["node 1 (127.0.0.2) is here"]
    early.say("ready")
    until(lambda: late.others("ready"))
    assert not early.others("ready")
    time.sleep(LIMIT + 1)
    assert early.trouble is None and late.trouble is None, "beats keep it"


def test_three_nodes() -> None:
    ring = Ring(3)
    links = [ring.join(rank) for rank in (2, 0, 1)]
    try:
        until(lambda: not any(link.missing for link in links))
        links[0].say("failed", "its GPU fell off")
        assert trouble(links[1]).text == "node 2 (127.0.0.3) failed: its GPU fell off"
        assert links[2].trouble is None, "node 1 hears of it from the head, when that ends"
    finally:
        for link in links:
            link.close()


@pytest.mark.parametrize("rank", [0, 1])
def test_who_ends_says_so(ring: Ring, rank: int) -> None:
    links = [ring.join(0), ring.join(1)]
    until(lambda: not any(link.missing for link in links))
    links[rank].say("stopped")
    links[rank].close()
    found = trouble(links[1 - rank])
    name = "node 1 (127.0.0.2)" if rank else "the head (127.0.0.1)"
    assert found == Trouble(Kind.STOPPED, f"{name} was stopped")
    assert not found.hangs and type(found.error("/log")) is ServerFailed
    assert str(found.error("/log")) == f"{name} was stopped [full log: /log]"


def test_why_comes_in_one_line(ring: Ring) -> None:
    head, other = ring.join(0), ring.join(1)
    until(lambda: not head.missing)
    other.say("failed", "RuntimeError:\n\x1b[31m" + "x " * 400)
    found = trouble(head)
    assert found.kind is Kind.FAILED and len(found.text) < 420
    assert (
        found.text.startswith("node 1 (127.0.0.2) failed: RuntimeError: [31mx x") and found.text.isprintable()
    )


_OTHER = """
import os, sys, time
from gb10.serve.link import Link
from gb10.serve.nodes import Nodes
port, identity = int(sys.argv[1]), {"gb10": "1", "model": "m 0123"}
nodes = Nodes(2, 1, "127.0.0.1", port, "127.0.0.2", "lo")
link = Link(nodes, identity, limit=3.0, patience=60.0, tell=print)
print("here", flush=True)
time.sleep(600)
"""


@pytest.fixture
def process(ring: Ring) -> Iterator["subprocess.Popen[str]"]:
    """Node 1 as a process that a signal can meet; the head is in ``ring``."""
    ring.join(0)
    with subprocess.Popen([sys.executable, "-c", _OTHER, str(ring.port)], text=True, stdout=-1) as made:
        until(lambda: not ring.links[0].missing)
        yield made
        made.kill()


def test_who_is_killed_is_gone(ring: Ring, process: "subprocess.Popen[str]") -> None:
    began = time.monotonic()
    process.kill()
    found = trouble(ring.links[0])
    assert time.monotonic() - began < 1.5
    assert found.kind is Kind.GONE and not found.hangs
    assert found.text == "node 1 (127.0.0.2) is gone: its gb10 serve ended without a word; it was killed"


def test_who_is_silent_is_cut_off(ring: Ring, process: "subprocess.Popen[str]") -> None:
    """A stopped process keeps its connection, as a machine behind a cut cable does."""
    began = time.monotonic()
    os.kill(process.pid, 19)
    found = trouble(ring.links[0])
    took = time.monotonic() - began
    assert LIMIT - BEAT - 0.5 < took < LIMIT + BEAT
    assert found.kind is Kind.SILENT and found.hangs
    assert found.text.startswith("node 1 (127.0.0.2) has said nothing for 3 s: its machine, or the network")


@pytest.mark.parametrize(("rank", "who"), [(0, "node 1"), (1, "the head")])
def test_who_does_not_come(ring: Ring, rank: int, who: str) -> None:
    found = trouble(ring.join(rank, patience=1.0))
    assert found == Trouble(Kind.ABSENT, f"{who} did not come within 1 s (at 127.0.0.1 port {ring.port + 1})")


def test_another_model_is_refused(ring: Ring) -> None:
    head = ring.join(0)
    other = ring.join(1, {**SAME, "model": "m 9999"})
    found = trouble(other)
    said = "node 1 (127.0.0.2) has another model than the head: m 9999, and the head m 0123"
    assert found == Trouble(Kind.REFUSED, f"the head refuses this node: {said}")
    assert type(found.error("/log")) is UserError and found.error("/log").exit_code == 2
    assert ring.told == [f"refused 127.0.0.1: {said}"]
    assert head.trouble is None and head.missing == [1]
    other.close()
    again = ring.join(1)
    until(lambda: not again.missing and not head.missing)


def test_an_older_node_is_refused(ring: Ring) -> None:
    ring.join(0)
    found = trouble(ring.join(1, {"gb10": "1"}))
    assert "has another model than the head: nothing of that name" in found.text


def test_a_node_that_is_here_already(ring: Ring) -> None:
    head, other = ring.join(0), ring.join(1)
    until(lambda: not head.missing)
    assert trouble(ring.join(1)).text == "the head refuses this node: node 1 is here already"
    assert head.trouble is None and other.trouble is None


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"[1]\n",
        b"{}\n",
        b'{"node": "1"}\n',
        b'{"node": 1, "identity": [], "address": ""}\n',
        b'{"node": null, "identity": {}, "address": ""}\n',
        b"\xff\xfe\n",
        b"x" * (1 << 17),
    ],
)
def test_strangers_change_nothing(ring: Ring, said: bytes) -> None:
    head = ring.join(0)
    with closing(ring.stranger()) as stranger:
        stranger.sendall(said)
        other = ring.join(1)
        until(lambda: not head.missing and not other.missing)
        if said:
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(1) == b"", "the connection is ended"
    assert head.trouble is None and other.trouble is None
    assert ring.told == ["node 1 (127.0.0.2) is here"]


def test_a_stranger_writes_nothing_on_the_terminal(ring: Ring) -> None:
    ring.join(0)
    with closing(ring.stranger()) as stranger:
        hello = {"node": 1, "address": "\x1b[2J", "identity": {"gb10": "\x1b]0;x\x07\n" + "y" * 5000}}
        stranger.sendall(json.dumps(hello).encode() + b"\n")
        until(lambda: ring.told)
    (line,) = ring.told
    assert line.isprintable() and len(line) < 400


def test_a_number_that_is_none_of_ours(ring: Ring) -> None:
    ring.join(0)
    for rank in (0, 2, -1):
        with closing(ring.stranger()) as stranger:
            hello = {"node": rank, "address": "x", "identity": SAME}
            stranger.sendall(json.dumps(hello).encode() + b"\n")
            answer = json.loads(stranger.makefile().readline())
            assert answer == {"refused": f"there is no node {rank} among 2"}


def test_who_says_nothing_does_not_stay(ring: Ring) -> None:
    ring.join(0)
    with closing(ring.stranger()) as stranger:
        stranger.settimeout(HELLO_LIMIT + 3)
        began = time.monotonic()
        assert stranger.recv(1) == b""
        assert time.monotonic() - began > HELLO_LIMIT - 1


def test_many_strangers_keep_nobody_out_for_long(ring: Ring) -> None:
    head = ring.join(0)
    held = [ring.stranger() for _ in range(40)]
    other = ring.join(1)
    until(lambda: not head.missing and not other.missing, HELLO_LIMIT + 5)
    for one in held:
        one.close()
    assert head.trouble is None


def test_a_port_that_is_taken(ring: Ring) -> None:
    with (
        closing(socket.create_server(("127.0.0.1", ring.port + 1))),
        pytest.raises(UserError, match=rf"cannot listen on 127.0.0.1 port {ring.port + 1} for the other"),
    ):
        ring.join(0)


def test_closing_is_quick_and_may_come_twice(ring: Ring) -> None:
    for link in (ring.join(1), ring.join(0)):
        began = time.monotonic()
        link.close()
        link.close()
        assert time.monotonic() - began < 2.5
