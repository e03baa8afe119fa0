"""Requests to a served model, and what became of them."""

import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PROMPTS = (
    "import os\n",
    "def main(",
    "class Node:\n    def",
    'def read(path):\n    """',
    "for line in lines:\n",
    "    return [",
    "A block scale covers sixteen values of a row, and",
    "import numpy as np\n\n\ndef mean(values",
)
NEW_TOKENS = 48


def _post(url: str, body: dict[str, Any], timeout: float) -> http.client.HTTPResponse:
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=timeout)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse()


def completion(url: str, body: dict[str, Any], timeout: float) -> dict[str, Any]:
    """The answer to one request that must succeed."""
    answer = _post(url, body, timeout)
    text = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {text[:400]!r}")
    found: dict[str, Any] = json.loads(text)
    return found


def is_healthy(url: str) -> bool:
    """Whether /health says 200."""
    where = urlsplit(url)
    try:
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False


def tokens(url: str, model: str, together: bool) -> tuple[list[list[int]], float]:
    """New tokens of the prompts at temperature 0, and tokens a second; ``together`` as one request."""
    texts = [list(PROMPTS)] if together else [[prompt] for prompt in PROMPTS]
    found: list[list[int]] = []
    began = time.monotonic()
    for prompts in texts:
        body = {
            "model": model,
            "prompt": prompts,
            "max_tokens": NEW_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "logprobs": 0,
            "return_tokens_as_token_ids": True,
        }
        choices = sorted(completion(url, body, 600)["choices"], key=lambda choice: choice["index"])
        # Each is "token_id:N".
        found += [
            [int(token.partition(":")[2]) for token in choice["logprobs"]["tokens"]] for choice in choices
        ]
    return found, sum(map(len, found)) / (time.monotonic() - began)


@dataclass
class Asked:
    """A long request in a thread. Times are of the monotonic clock."""

    url: str
    model: str
    stream: bool
    new_tokens: int
    limit: float
    got: str = "nothing"
    pieces: int = 0
    """Pieces of a stream that came."""
    began: float = 0.0
    ended: float | None = None
    first: threading.Event = field(default_factory=threading.Event)
    """Set when the first piece of a stream is here."""

    def start(self) -> "Asked":
        """Ask."""
        self.began = time.monotonic()
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def _run(self) -> None:
        body = {
            "model": self.model,
            "prompt": PROMPTS[2],
            "max_tokens": self.new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": self.stream,
        }
        try:
            self.got = self._read(_post(self.url, body, self.limit))
        except TimeoutError:
            self.got = f"nothing for {self.limit:g} s"
            return
        except (OSError, http.client.HTTPException) as error:
            self.got = f"connection closed ({type(error).__name__})"
        self.ended = time.monotonic()

    def _read(self, answer: http.client.HTTPResponse) -> str:
        if answer.status != 200:
            return f"{answer.status} {_message(answer.read())}"
        if not self.stream:
            answer.read()
            return "200, whole"
        for line in answer:
            if line.startswith(b"data: [DONE]"):
                return f"200, whole ({self.pieces} pieces)"
            if line.startswith(b'data: {"error"'):
                return f"200, then an error in the stream: {_message(line[6:])}"
            if line.startswith(b"data:"):
                self.pieces += 1
                self.first.set()
        return f"200, then nothing more after {self.pieces} pieces: the connection closed"


def _message(text: bytes) -> str:
    try:
        found = json.loads(text)
        return str(found.get("error", found).get("message", found))[:120]
    except (ValueError, AttributeError):
        return repr(text[:80])
