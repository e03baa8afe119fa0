"""A server with OpenAI's API that streams made-up tokens at a set pace, in this process or as a program.

As a program (``python stand_in.py PORT GAP``) it ends on SIGTERM.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "made-up"


@dataclass
class Behaviour:
    """How the server answers. Times are in seconds."""

    gap: float = 0.002
    first: float = 0.01
    context: int = 4096
    key: str | None = None
    loading: bool = False
    """Whether it answers 503."""
    short: int = 0
    """Tokens that it leaves out of what was asked for."""
    whole: bool = False
    """Whether it gives all tokens in one piece."""
    die_after: int | None = None
    """Streams after which it breaks off every answer."""
    hang_after: int | None = None
    """Pieces of a stream after which it sends nothing but comments until `ended`."""
    hang_from: int = 1
    """The first stream that hangs."""
    drafts: int = 0
    """Drafts of which the first is accepted always, the second in half of the steps."""
    chat: bool = True
    usage: dict[str, Any] | None = None
    """What it counts, where it counts wrong."""
    counters: bytes | None = None
    """All of /metrics, where that is odd."""
    mute: tuple[str, ...] = ()
    """Paths that it never answers, and "first" for the request before it is measured."""
    reads: str = ""
    """What else is in /metrics."""
    root: str = MODEL
    prompts: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    streams: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    broken: int = 0
    """Streams whose client went away."""


class Server(ThreadingHTTPServer):
    """Carries the behaviour to the handlers."""

    daemon_threads = True
    behaviour: Behaviour


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _json(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refused(self) -> bool:
        how = self.server.behaviour
        if how.loading:
            self._json({"error": {"message": "loading"}}, 503)
        elif how.key is not None and self.headers.get("Authorization") != f"Bearer {how.key}":
            self._json({"error": "Unauthorized"}, 401)
        else:
            return False
        return True

    def do_GET(self) -> None:
        """The list of models, the version and the counters."""
        how = self.server.behaviour
        if self.path in how.mute:
            how.ended.wait(60)
            self.close_connection = True
            return
        if self.path == "/metrics":
            steps = how.streams
            lines = [f'vllm:spec_decode_num_drafts_total{{model_name="{MODEL}"}} {2 * steps}']
            lines += [f"vllm:spec_decode_num_draft_tokens_total {2 * how.drafts * steps}"]
            lines += [f"vllm:spec_decode_num_accepted_tokens_total {3 * steps}"]
            for position, accepted in enumerate((2 * steps, steps)):
                name = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
                lines.append(f'{name}{{position="{position}"}} {accepted}')
            data = ("\n".join(lines if how.drafts else ["# nothing"]) + "\n" + how.reads).encode()
            data = how.counters or data
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        elif self._refused():
            return
        elif self.path == "/v1/models":
            self._json({"data": [{"id": MODEL, "root": how.root, "max_model_len": how.context}]})
        elif self.path == "/version":
            self._json({"version": "0.0.stand-in"})
        else:
            self._json({"error": {"message": "Not Found"}}, 404)

    def do_POST(self) -> None:
        """A completion, at once or as a stream."""
        how = self.server.behaviour
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused():
            return
        if "first" in how.mute and not body.get("stream"):
            how.ended.wait(60)
            self.close_connection = True
            return
        chat = self.path == "/v1/chat/completions"
        if chat and not how.chat:
            self._json({"error": {"message": "the model has no\nchat template"}}, 400)
            return
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        prompt = prompt if isinstance(prompt, str) else prompt[0]["text"]
        asked = body.get("max_tokens") or body.get("max_completion_tokens")
        given = max(1, asked - how.short)
        usage = {"prompt_tokens": max(1, len(prompt) // 4), "completion_tokens": given}
        if usage["prompt_tokens"] + asked > how.context:
            self._json({"error": {"message": "this is longer than the context"}}, 400)
        elif body.get("stream"):
            how.prompts.append(prompt)
            how.bodies.append(body)
            how.streams += 1
            self._stream(chat, 1 if how.whole else given, usage)
        else:
            self._json({"choices": [{"text": "x"}], "usage": usage})

    def _stream(self, chat: bool, pieces: int, usage: dict[str, int]) -> None:
        how = self.server.behaviour
        dies = how.die_after is not None and how.streams > how.die_after
        hangs = how.hang_after is not None and how.streams >= how.hang_from
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in range(pieces):
            time.sleep(how.gap if piece else how.first)
            if dies and piece == pieces // 2:
                self.close_connection = True
                self.connection.shutdown(2)
                return
            if hangs and piece == how.hang_after:
                self._hang()
                return
            self._event({"choices": [{"delta": {"content": "x"}} if chat else {"text": "x"}]})
        self._event({"choices": [], "usage": how.usage or usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _hang(self) -> None:
        how = self.server.behaviour
        self.close_connection = True
        try:
            while not how.ended.wait(0.05):
                self._chunk(b": still here\n\n")
        except OSError:
            how.broken += 1

    def _event(self, content: Any) -> None:
        self._chunk(b"data: " + json.dumps(content).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[int]:
    """Serve in threads of this process; gives the port."""
    server = Server(("127.0.0.1", 0), Handler)
    server.behaviour = behaviour
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        behaviour.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    program = Server(("127.0.0.1", int(sys.argv[1])), Handler)
    program.behaviour = Behaviour(gap=float(sys.argv[2]))
    print("a line of the stand-in's log", flush=True)
    program.serve_forever()
