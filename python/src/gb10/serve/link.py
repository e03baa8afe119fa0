"""What the `gb10 serve` of several nodes tell each other, so that none of them waits for one that is gone.

vLLM's nodes notice each other's death where they compute together, and there alone: a headless node whose
head has died waits on its socket for ever, and so does a collective over a cut cable. So each node holds a
connection to the head's `gb10 serve` (at the head's --master-port + 1) and says something every second.
Who ends says so, and why; whose connection ends without a word was killed; who is silent for too long is cut
off. Each of them is `Trouble`, over which a node ends in its turn, with a line that says whose fault it was.

Messages are lines of JSON. The first one of a node is its hello: its number, and what must be the same on
all nodes (`gb10.serve.nodes.identity`), which the head compares. Nothing of it is a secret, and nothing
proves who sent it: like vLLM's own connections it belongs into a network that nobody else is in.
"""

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum, auto
from typing import Any

from gb10.errors import ServerFailed, UserError
from gb10.serve.nodes import Nodes, difference, node_name
from gb10.serve.words import one_line

BEAT = 1.0
"""Seconds between two messages."""

HELLO_LIMIT = 5.0
"""Seconds in which a connection must say which node it is."""

_LONGEST = 1 << 16
"""Bytes of a message."""

_STRANGERS = 16
"""Connections that have not said yet which node they are."""

_FLUSH = 1.0
"""Seconds for the last word."""


class Kind(StrEnum):
    """What is wrong with a node."""

    STOPPED = auto()
    FAILED = auto()
    GONE = auto()
    SILENT = auto()
    ABSENT = auto()
    REFUSED = auto()


@dataclass(frozen=True)
class Trouble:
    """What is wrong with another node, or with us in its eyes: one line."""

    kind: Kind
    text: str

    @property
    def hangs(self) -> bool:
        """Whether vLLM may not notice: the others then have to be ended."""
        return self.kind is Kind.SILENT

    def error(self, log: str) -> UserError:
        """As an error: of the user where the nodes do not go together, else of the server."""
        made = UserError if self.kind is Kind.REFUSED else ServerFailed
        return made(f"{self.text} [full log: {log}]")


class _Wire:
    """A connection that carries messages and never blocks."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self.socket = end
        self.peer = str(end.getpeername()[0])
        self.born = self.heard = time.monotonic()
        self.rank: int | None = None
        """Which node it is, once it has said so."""
        self.said = ""
        self.state = ""
        """What it last said of itself."""
        self._in = b""
        self._out = b""

    def send(self, message: Mapping[str, Any]) -> None:
        """Send now what can be; a beat that has to wait for others is left out."""
        if message or not self._out:
            self._out += json.dumps(message).encode() + b"\n"
        with contextlib.suppress(OSError):
            self._out = self._out[self.socket.send(self._out) :]

    @property
    def unsent(self) -> bool:
        """Whether something waits for the network."""
        return bool(self._out)

    def receive(self) -> list[dict[str, Any]] | None:
        """What came; None where nothing will any more. Raises ValueError for what is no message."""
        try:
            data = self.socket.recv(_LONGEST)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            return None
        if not data:
            return None
        self.heard = time.monotonic()
        *lines, self._in = (self._in + data).split(b"\n")
        if len(self._in) > _LONGEST:
            raise ValueError
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError
        return messages

    def close(self) -> None:
        self.socket.close()


class Link:
    """This node's side. ``limit``: seconds of silence; ``patience``: seconds for all to come.

    A thread does the talking. `trouble` is asked by who waits for something else; ``tell`` gets a line for
    the user when a node comes or is refused. Raises UserError where the head cannot listen.
    """

    def __init__(
        self,
        nodes: Nodes,
        identity: Mapping[str, str],
        *,
        limit: float,
        patience: float,
        tell: Callable[[str], None],
    ) -> None:
        self._nodes, self._identity = nodes, dict(identity)
        self._limit, self._patience, self._tell = limit, patience, tell
        self._state = {"state": "loading", "why": ""}
        self._wires: list[_Wire] = []
        self._trouble: Trouble | None = None
        self._since = time.monotonic()
        self._ending = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._welcome = nodes.is_head
        ours, self._waker = socket.socketpair()
        for end in (ours, self._waker):
            end.setblocking(False)
        self._wakened = ours
        self._selector.register(ours, selectors.EVENT_READ)
        if nodes.is_head:
            self._listener = _listening(nodes)
            self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="gb10-link", daemon=True)
        self._thread.start()

    @property
    def is_head(self) -> bool:
        """Whether this node has the API."""
        return self._nodes.is_head

    @property
    def trouble(self) -> Trouble | None:
        """The first thing that went wrong with another node; None where all is well."""
        return self._trouble

    def wait(self, seconds: float) -> Trouble | None:
        """The trouble that there is, or that comes within ``seconds``."""
        until = time.monotonic() + seconds
        while self._trouble is None and time.monotonic() < until:
            time.sleep(0.05)
        return self._trouble

    @property
    def missing(self) -> list[int]:
        """Numbers of the nodes that have not come yet; on another node than the head only the head's."""
        here = {wire.rank for wire in self._wires}
        wanted = range(1, self._nodes.count) if self._nodes.is_head else (0,)
        return [rank for rank in wanted if rank not in here or not self._welcome]

    def others(self, state: str) -> bool:
        """Whether all other nodes that we talk to have come and say this of themselves."""
        return not self.missing and all(wire.state == state for wire in self._wires if wire.rank is not None)

    def say(self, state: str, why: str = "") -> None:
        """Let the others know what became of this node."""
        self._state = {"state": state, "why": why}
        with contextlib.suppress(OSError):
            self._waker.send(b"s")

    def close(self) -> None:
        """Say the last word, and end. Safe to call twice."""
        self._ending.set()
        with contextlib.suppress(OSError):
            self._waker.send(b"e")
        self._thread.join(_FLUSH + BEAT)

    # What follows runs in the thread.

    def _run(self) -> None:
        told, beat = {"state": ""}, 0.0
        try:
            while not self._ending.is_set():
                if not self._nodes.is_head and not self._wires and self._trouble is None:
                    self._call()
                for key, _ in self._selector.select(BEAT / 4):
                    if key.fileobj is self._wakened:
                        self._wakened.recv(64)
                    elif key.fileobj is self._listener:
                        self._accept()
                    else:
                        self._hear(key.data)
                now = time.monotonic()
                if now - beat >= BEAT or told != self._state:
                    beat, message = now, self._state if told != self._state else {}
                    told = self._state
                    self._send(self._known(), message)
                self._judge(now)
            self._send(self._known(), self._state if told != self._state else {})
            self._flush()
        finally:
            for wire in self._wires:
                wire.close()
            for end in (self._listener, self._wakened, self._waker):
                if end is not None:
                    end.close()
            self._selector.close()

    def _known(self) -> list[_Wire]:
        return [wire for wire in self._wires if wire.rank is not None and self._welcome]

    def _send(self, wires: Iterable[_Wire], message: Mapping[str, Any]) -> None:
        for wire in wires:
            wire.send(message)

    def _flush(self) -> None:
        until = time.monotonic() + _FLUSH
        while any(wire.unsent for wire in self._known()) and time.monotonic() < until:
            time.sleep(0.02)
            self._send(self._known(), {})

    def _call(self) -> None:
        """Connect to the head, and say hello."""
        where = (self._nodes.master, self._nodes.link_port)
        try:
            end = socket.create_connection(where, timeout=BEAT)
        except OSError:
            self._ending.wait(BEAT / 2)
            return
        wire = self._take(end)
        wire.rank, self._welcome = 0, False
        wire.send({"node": self._nodes.rank, "identity": self._identity, "address": self._nodes.address})

    def _accept(self) -> None:
        if self._listener is None:
            return
        with contextlib.suppress(OSError):
            end, _ = self._listener.accept()
            if sum(wire.rank is None for wire in self._wires) >= _STRANGERS:
                end.close()
                return
            self._take(end)

    def _take(self, end: socket.socket) -> _Wire:
        wire = _Wire(end)
        self._wires.append(wire)
        self._selector.register(end, selectors.EVENT_READ, wire)
        return wire

    def _drop(self, wire: _Wire) -> None:
        self._selector.unregister(wire.socket)
        self._wires.remove(wire)
        wire.close()

    def _hear(self, wire: _Wire) -> None:
        try:
            messages = wire.receive()
            for message in messages or ():
                self._take_in(wire, message)
        except (ValueError, LookupError, TypeError, AttributeError):
            messages = None
        if messages is None and wire in self._wires:
            known = wire.rank is not None and self._welcome
            name = self._name(wire)
            self._drop(wire)
            if known:
                self._lost(wire, name)

    def _name(self, wire: _Wire) -> str:
        return node_name(wire.rank or 0, wire.said or wire.peer)

    def _lost(self, wire: _Wire, name: str) -> None:
        if wire.state not in (Kind.STOPPED, Kind.FAILED):
            self._note(Kind.GONE, f"{name} is gone: its gb10 serve ended without a word; it was killed")

    def _take_in(self, wire: _Wire, message: Mapping[str, Any]) -> None:
        if wire.rank is None:
            self._meet(wire, message)
            return
        if "refused" in message:
            self._note(Kind.REFUSED, f"the head refuses this node: {_plain(message['refused'], 360)}")
        elif "welcome" in message:
            self._welcome = True
            wire.send(self._state)
        elif "state" in message:
            wire.state = str(message["state"])
            why = _plain(message.get("why", ""), 360)
            if wire.state == Kind.STOPPED:
                self._note(Kind.STOPPED, f"{self._name(wire)} was stopped")
            elif wire.state == Kind.FAILED:
                self._note(Kind.FAILED, f"{self._name(wire)} failed: {why}")

    def _meet(self, wire: _Wire, message: Mapping[str, Any]) -> None:
        """The head: who has called?"""
        rank, theirs = message["node"], message["identity"]
        name = node_name(int(rank), _plain(message["address"]))
        here = {other.rank for other in self._wires}
        if type(rank) is not int or not 0 < rank < self._nodes.count:
            wrong: str | None = f"there is no node {rank} among {self._nodes.count}"
        elif rank in here:
            wrong = f"node {rank} is here already"
        else:
            wrong = difference(self._identity, theirs, name)
        if wrong is not None:
            wrong = _plain(wrong, 360)
            self._tell(f"refused {wire.peer}: {wrong}")
            wire.send({"refused": wrong})
            self._drop(wire)
            return
        wire.rank, wire.said = rank, _plain(message["address"])
        self._tell(f"{name} is here")
        wire.send({"welcome": self._nodes.count})
        wire.send(self._state)

    def _judge(self, now: float) -> None:
        for wire in list(self._wires):
            if wire.rank is None and now - wire.born > HELLO_LIMIT:
                self._drop(wire)
            elif wire.rank is not None and now - wire.heard > self._limit:
                self._note(
                    Kind.SILENT,
                    f"{self._name(wire)} has said nothing for {self._limit:g} s: its machine, or the network "
                    "between, is down",
                )
        if self.missing and now - self._since > self._patience:
            absent = ", ".join("the head" if rank == 0 else f"node {rank}" for rank in self.missing)
            where = f"{self._nodes.master} port {self._nodes.link_port}"
            self._note(Kind.ABSENT, f"{absent} did not come within {self._patience:g} s (at {where})")

    def _note(self, kind: Kind, text: str) -> None:
        if self._trouble is None:
            self._trouble = Trouble(kind, text)


def _plain(said: object, longest: int = 64) -> str:
    """What another says, as text that a terminal shows and nothing else."""
    return one_line("".join(one if one.isprintable() else " " for one in str(said)))[:longest]


def _listening(nodes: Nodes) -> socket.socket:
    """The head's socket."""
    family = socket.AF_INET6 if ":" in nodes.master else socket.AF_INET
    try:
        return socket.create_server((nodes.master, nodes.link_port), family=family, backlog=_STRANGERS)
    except OSError as error:
        raise UserError(
            f"cannot listen on {nodes.master} port {nodes.link_port} for the other nodes "
            f"({error.strerror or error}); give all nodes another --master-port"
        ) from None
