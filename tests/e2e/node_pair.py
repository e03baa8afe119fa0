"""Two `gb10 serve` that serve one model together on this machine: started, asked, broken.

The machine is one, so that each has one thread; what a cable between two machines brings is in the lab.
"""

import contextlib
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import START_LIMIT, Serve, descendants, free_port, still_alive

PROMPTS = ("def connect(host, port):", "import", "class Node:\n    def", "A block scale covers", "for i in")
TOKENS = 32
LONG = 1500
ANSWER_LIMIT = 30.0
"""Seconds in which a client whose server broke gets an error. Seen: below one."""

END_LIMIT = 45.0
GONE_LIMIT = 10.0

ALIKE = ("--max-num-seqs", "4", "--kv-cache-memory-bytes", "256M", "--served-model-name", "m")
VARIABLES = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "GB10_CANARY_INTERVAL": "0"}
"""vLLM gives each rank a NUMA node of its own unless it is told not to; and no canary in between."""

Tokens = list[list[int]]


@dataclass
class Pair:
    """The head and the other node."""

    head: Serve
    other: Serve

    def kill(self) -> None:
        for serve in (self.head, self.other):
            serve.kill()

    @property
    def text(self) -> str:
        return f"the head:\n{self.head.text}\nnode 1:\n{self.other.text}"


def two_free_ports() -> int:
    """A port that is free, and the next one too."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port + 1))
            return port


def together(rank: int, port: int) -> list[str]:
    words = ["--nnodes", "2", "--node-rank", str(rank), "--master-addr", "127.0.0.1"]
    return [*words, "--master-port", str(port), *(["--headless"] if rank else [])]


def start_pair(variables: dict[str, str], *words: str, port: int | None = None) -> Pair:
    """Both, ready. ``port``: where they meet; without, one that is free."""
    port = port or two_free_ports()
    other, head = (Serve([*ALIKE, *words, *together(rank, port)], variables) for rank in (1, 0))
    pair = Pair(head, other)
    until = time.monotonic() + START_LIMIT
    while head.seconds == 0 or other.seconds == 0:
        dead = any(serve.process.poll() is not None for serve in (head, other))
        if dead or time.monotonic() > until:
            time.sleep(1)
            text = pair.text
            pair.kill()
            pytest.fail(f"two nodes did not come up:\n{text}")
        time.sleep(0.2)
    head.wait_ready()
    return pair


def ask(serve: Serve, prompt: str, tokens: int) -> dict[str, Any]:
    body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{serve.url}/completions",
        data=json.dumps(body | {"return_token_ids": True}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        answered: dict[str, Any] = json.load(answer)
    return answered


def tokens_of(serve: Serve) -> Tokens:
    return [ask(serve, prompt, TOKENS)["choices"][0]["token_ids"] for prompt in PROMPTS]


class Waiting:
    """A long request in a thread, and how it ended: what of, and when."""

    def __init__(self, serve: Serve) -> None:
        self.ended: BaseException | None = None
        self.when = 0.0
        self._thread = threading.Thread(target=self._run, args=(serve,), daemon=True)
        self._thread.start()

    def _run(self, serve: Serve) -> None:
        try:
            ask(serve, PROMPTS[0], LONG)
        except Exception as error:
            self.ended = error
        self.when = time.monotonic()

    def join(self, limit: float) -> None:
        self._thread.join(limit)
        assert not self._thread.is_alive(), f"the client still waits after {limit} s"


def ends_over(
    pair: Pair, act: Callable[[], None], answer: float = ANSWER_LIMIT, end: float = END_LIMIT
) -> Waiting:
    """Break something during a long request; how that ended. Both nodes end, and nothing is left."""
    pids = descendants(pair.head.process.pid) | descendants(pair.other.process.pid)
    waiting = Waiting(pair.head)
    time.sleep(1.5)
    began = time.monotonic()
    act()
    waiting.join(answer)
    assert waiting.ended is not None, "the request came to its end before anything broke"
    print(f"{type(waiting.ended).__name__} after {waiting.when - began:.1f} s")
    for serve in (pair.head, pair.other):
        serve.process.wait(end)
    print(f"both ended after {time.monotonic() - began:.1f} s")
    time.sleep(0.5)
    assert not still_alive(pids, GONE_LIMIT)
    return waiting
