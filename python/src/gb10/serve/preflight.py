"""What `gb10 serve` asks vLLM's process before that may serve, and what it makes of the answers.

The engine process (`gb10.serve.engine`) imports vLLM once, answers over a socket, and then serves. Each
message is a line of JSON. In this order:

1. ``facts``: vLLM's options, the arguments in a ``--config`` file, and a report of each of `REPORTERS`.
2. ``judge``: the final arguments; vLLM's own parser reads them and its own classes make the configuration.
   The answer is a `Verdict`.
3. ``serve``: the keys, what was planned, this node's part of Ray, and the socket to listen on. No answer: the
   line closes, and the process serves what was judged last. On a node without an API it is ``join``, with
   what was planned and Ray's part.

An answer ``{"error": TEXT}`` is a UserError here: exit code 2.
"""

import contextlib
import json
import select
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gb10.errors import UserError
from gb10.serve.ray import Start
from gb10.serve.vllm_arguments import Vocabulary

if TYPE_CHECKING:
    # The engine process reads this module as well, and has no use for those.
    from gb10.serve.progress import Progress
    from gb10.serve.supervise import Server

SOCKET_VARIABLE = "GB10_SERVE_SOCKET"
"""Number of the file descriptor that the engine process answers on."""

REPORTERS: Mapping[str, str] = {"formats": "gb10.checkpoint.formats:report"}
"""Reports on a checkpoint that need vLLM: name -> "module:function". The function takes a
`gb10.checkpoint.folder.Checkpoint` and gives what JSON can carry; it raises UserError to refuse the
checkpoint. It runs in the engine process, where vLLM is imported already. A checkpoint that is not on this
machine has a config, if the hub gave one, and neither folder nor tensors."""

_POLL = 0.1


def _told(ray: Start | None) -> dict[str, Any] | None:
    return None if ray is None else vars(ray)


class Stopped(Exception):
    """A signal asked for the end while vLLM's process was asked."""


@dataclass(frozen=True)
class Facts:
    """What the engine process says first."""

    vocabulary: Vocabulary
    """vLLM's options."""
    config: tuple[str, ...] = ()
    """The arguments that the ``--config`` file stands for."""
    reports: Mapping[str, Any] = field(default_factory=dict)
    """What each of `REPORTERS` said."""


@dataclass(frozen=True)
class Verdict:
    """What vLLM's own parser made of the final arguments."""

    host: str | None
    port: int
    uds: str | None
    keys: tuple[str, ...]
    model_tag: str | None
    """A stray word, which vLLM's API server would ignore."""
    ignored: tuple[str, ...]
    """Options that another command of vLLM heeds, and its API server does not."""


class Line:
    """One end of the socket: messages are lines of JSON."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._rest = b""
        self.sockets: list[socket.socket] = []
        """Those that came with messages."""

    def fileno(self) -> int:
        """For select."""
        return self._end.fileno()

    def send(self, message: Mapping[str, Any], *sockets: socket.socket) -> None:
        """Send one message, and a few sockets with it; OSError when the other end is gone."""
        data = json.dumps(message, default=str).encode() + b"\n"
        if sockets:
            sent = socket.send_fds(self._end, [data], [one.fileno() for one in sockets])
            data = data[sent:]
        self._end.sendall(data)

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when there will be none. Waits for it."""
        while b"\n" not in self._rest:
            try:
                data, files, _, _ = socket.recv_fds(self._end, 1 << 16, 4)
            except ConnectionError:
                # So it ends where the other side was killed before it had read what we sent.
                return None
            self.sockets += [socket.socket(fileno=file) for file in files]
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Close this end."""
        self._end.close()


class Engine:
    """vLLM's process, which was started with ``theirs`` and answers until it is told to serve."""

    def __init__(self, line: Line, server: "Server", show: "Progress", *, draw: bool) -> None:
        self._line, self._server, self._show, self._draw = line, server, show, draw

    def facts(self, config: str | None, checkpoint: Mapping[str, Any] | None) -> Facts:
        """Ask for vLLM's options, and for reports on a checkpoint, as `gb10.serve.run` describes it."""
        said = self._ask({"ask": "facts", "config": config, "checkpoint": checkpoint})
        vocabulary = Vocabulary(said["options"], frozenset(said["several"]))
        return Facts(vocabulary, tuple(said["config"]), said["reports"])

    def judge(self, arguments: Sequence[str], *, configure: bool) -> Verdict:
        """Let vLLM read its final arguments; with ``configure`` make its configuration of them, too."""
        said = self._ask({"ask": "judge", "arguments": list(arguments), "configure": configure})
        lists = {name: tuple(said.pop(name)) for name in ("keys", "ignored")}
        return Verdict(**(said | lists))

    def serve(
        self,
        keys: tuple[str, ...],
        listener: socket.socket,
        *,
        metrics: bool,
        planned: Mapping[str, Any],
        ray: Start | None = None,
    ) -> None:
        """Let it serve, on a socket that is bound and does not listen yet.

        ``planned`` is `gb10.routing.plan` of what it serves, ``ray`` what it starts of Ray.
        """
        question = {"ask": "serve", "keys": keys, "metrics": metrics, "planned": planned, "ray": _told(ray)}
        with contextlib.suppress(OSError):
            self._line.send(question, listener)
        self._line.close()

    def join(self, *, planned: Mapping[str, Any], ray: Start | None = None) -> None:
        """Let it run this node's part of a model whose head is another node."""
        with contextlib.suppress(OSError):
            self._line.send({"ask": "join", "planned": planned, "ray": _told(ray)})
        self._line.close()

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The answer, drawing progress meanwhile.

        Raises UserError for one that refuses, ServerFailed when the process ends, Stopped on a signal.
        """
        with contextlib.suppress(OSError):
            self._line.send(question)
        while self._server.stopping is None:
            self._server.feed(self._show)
            if self._draw:
                self._show.beat()
            if select.select([self._line], [], [], _POLL)[0]:
                answer = self._line.receive()
                if answer is not None:
                    self._show.clear()
                    if "error" in answer:
                        raise UserError(answer["error"])
                    return answer
                time.sleep(_POLL)
            if self._server.exit_code is not None:
                self._show.clear()
                raise self._server.failure("starting")
        self._show.clear()
        raise Stopped
