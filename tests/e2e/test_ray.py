"""Two `gb10 serve` that serve one model together under Ray, over the loopback interface: tokens, and a death.

The program needs Ray beside vLLM: serve-ray, not serve.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped, unused-ignore]
import pytest
from conftest import START_LIMIT, Serve, descendants, still_alive

PROMPTS = ("def connect(host, port):", "import", "class Node:\n    def")
TOKENS = 32
LONG = 1500
ANSWER_LIMIT = 60.0
"""Seconds in which a client whose server broke gets an error. Seen: 5."""

END_LIMIT = 60.0
GONE_LIMIT = 10.0
PORT = 29521
"""Ray's, on the loopback interface; gb10's link has the next one."""

WORDS = (
    *("--max-num-seqs", "4", "--kv-cache-memory-bytes", "256M", "--served-model-name", "m"),
    *("--tensor-parallel-size", "2"),
)
NODES = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(PORT))
UNDER_RAY = ("--distributed-executor-backend", "ray")
VARIABLES = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "GB10_CANARY_INTERVAL": "0"}

Tokens = list[list[int]]


class Pair:
    """The head and node 1, both ready."""

    def __init__(self, variables: dict[str, str], executor: tuple[str, ...]) -> None:
        words = [*WORDS, *NODES, *executor]
        self.other = Serve([*words, "--node-rank", "1", "--headless"], variables)
        self.head = Serve([*words, "--node-rank", "0"], variables)
        until = time.monotonic() + START_LIMIT
        while self.head.seconds == 0 or self.other.seconds == 0:
            dead = any(serve.process.poll() is not None for serve in (self.head, self.other))
            if dead or time.monotonic() > until:
                time.sleep(1)
                self.kill()
                pytest.fail(f"two nodes did not come up:\n{self.text}")
            time.sleep(0.2)
        self.head.wait_ready()

    @property
    def text(self) -> str:
        return f"the head:\n{self.head.text}\nnode 1:\n{self.other.text}"

    def kill(self) -> None:
        for serve in (self.head, self.other):
            serve.kill()


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


def ranks(serve: Serve) -> list[int]:
    """Processes of Ray's that have a rank on this node."""
    found = [psutil.Process(pid) for pid in descendants(serve.process.pid)]
    return [process.pid for process in found if "CpuRayWorkerProc" in "".join(process.cmdline())]


class Waiting:
    """A long request in a thread, and how it ended."""

    def __init__(self, serve: Serve) -> None:
        self.ended: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(serve,), daemon=True)
        self._thread.start()

    def _run(self, serve: Serve) -> None:
        try:
            ask(serve, PROMPTS[0], LONG)
        except Exception as error:
            self.ended = error

    def join(self) -> None:
        self._thread.join(ANSWER_LIMIT)
        assert not self._thread.is_alive(), f"the client still waits after {ANSWER_LIMIT} s"


@pytest.fixture(scope="module")
def nodes_variables(serve_variables: dict[str, str]) -> dict[str, str]:
    return serve_variables | VARIABLES


@pytest.fixture(scope="module")
def without(nodes_variables: dict[str, str]) -> Tokens:
    """The tokens of the same two nodes under vLLM's own executor."""
    pair = Pair(nodes_variables, ())
    try:
        found = tokens_of(pair.head)
        pair.head.process.terminate()
        pair.other.process.wait(END_LIMIT)
        return found
    finally:
        pair.kill()


def test_tokens_and_a_rank_that_is_killed(without: Tokens, nodes_variables: dict[str, str]) -> None:
    """Those of vLLM's own executor. Then node 1's rank is killed: an error, a name, and both end."""
    pair = Pair(nodes_variables, UNDER_RAY)
    try:
        assert tokens_of(pair.head) == without
        assert re.search(r"^ready after \d+ s: node 1 \(127\.0\.0\.1\) serves", pair.other.text, re.M)
        (mine,), (theirs,) = ranks(pair.head), ranks(pair.other)
        assert mine != theirs
        pids = descendants(pair.head.process.pid) | descendants(pair.other.process.pid)
        waiting = Waiting(pair.head)
        time.sleep(1.5)
        os.kill(theirs, signal.SIGKILL)
        waiting.join()
        assert isinstance(waiting.ended, urllib.error.HTTPError) and waiting.ended.code == 500
        for serve in (pair.head, pair.other):
            assert serve.process.wait(END_LIMIT) == 1, pair.text
        time.sleep(0.5)
        assert not still_alive(pids, GONE_LIMIT)
        # Ray calls a node at 127.0.0.1 by another address of the machine, where there is one.
        said = r"vLLM ended while serving .*rank 1( \(process \d+ on [\d.]+\))? died under Ray"
        assert re.search(rf"gb10: error: {said}", pair.head.text), pair.text
        assert re.search(rf"gb10: error: the head \(127\.0\.0\.1\) failed: {said}", pair.other.text), (
            pair.text
        )
    finally:
        pair.kill()


def test_they_serve_again_and_stop(nodes_variables: dict[str, str], tmp_path: Path) -> None:
    """A second start at the same port; SIGTERM ends the head within 10 s, and node 1 after it."""
    pair = Pair(nodes_variables | {"TMPDIR": str(tmp_path)}, UNDER_RAY)
    try:
        assert len(tokens_of(pair.head)) == len(PROMPTS)
        pids = descendants(pair.head.process.pid) | descendants(pair.other.process.pid)
        pair.head.process.terminate()
        assert pair.head.process.wait(10) == 0, pair.text
        assert pair.other.process.wait(10) == 1, pair.text
        assert "the head (127.0.0.1) was stopped" in pair.other.text
        assert not still_alive(pids, GONE_LIMIT)
        assert list(tmp_path.iterdir()) == []
    finally:
        pair.kill()
