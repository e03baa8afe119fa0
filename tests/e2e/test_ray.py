"""Two `gb10 serve` that serve one model together under Ray, over the loopback interface: tokens, and a death.

The program needs Ray beside vLLM: serve-ray, not serve.
"""

import os
import re
import signal
import urllib.error
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]
import pytest
from conftest import Serve, descendants, still_alive
from node_pair import GONE_LIMIT, PROMPTS, VARIABLES, Pair, Tokens, ends_over, start_pair, tokens_of

ANSWER_LIMIT = 60.0
"""Seconds in which a client whose server broke gets an error. Seen: 5."""

END_LIMIT = 60.0
PORT = 29521
"""Ray's, on the loopback interface; gb10's link has the next one."""

UNDER_RAY = ("--distributed-executor-backend", "ray")


def started(variables: dict[str, str], *executor: str) -> Pair:
    """Both, ready, with a rank each."""
    return start_pair(variables, "--tensor-parallel-size", "2", *executor, port=PORT)


def ranks(serve: Serve) -> list[int]:
    """Processes of Ray's that have a rank on this node."""
    found = [psutil.Process(pid) for pid in descendants(serve.process.pid)]
    return [process.pid for process in found if "CpuRayWorkerProc" in "".join(process.cmdline())]


@pytest.fixture(scope="module")
def nodes_variables(serve_variables: dict[str, str]) -> dict[str, str]:
    return serve_variables | VARIABLES


@pytest.fixture(scope="module")
def without(nodes_variables: dict[str, str]) -> Tokens:
    """The tokens of the same two nodes under vLLM's own executor."""
    pair = started(nodes_variables)
    try:
        found = tokens_of(pair.head)
        pair.head.process.terminate()
        pair.other.process.wait(END_LIMIT)
        return found
    finally:
        pair.kill()


def test_tokens_and_a_rank_that_is_killed(without: Tokens, nodes_variables: dict[str, str]) -> None:
    """Those of vLLM's own executor. Then node 1's rank is killed: an error, a name, and both end."""
    pair = started(nodes_variables, *UNDER_RAY)
    try:
        assert tokens_of(pair.head) == without
        assert re.search(r"^ready after \d+ s: node 1 \(127\.0\.0\.1\) serves", pair.other.text, re.M)
        (mine,), (theirs,) = ranks(pair.head), ranks(pair.other)
        assert mine != theirs
        waiting = ends_over(pair, lambda: os.kill(theirs, signal.SIGKILL), ANSWER_LIMIT, END_LIMIT)
        assert isinstance(waiting.ended, urllib.error.HTTPError) and waiting.ended.code == 500
        assert (pair.head.process.returncode, pair.other.process.returncode) == (1, 1), pair.text
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
    pair = started(nodes_variables | {"TMPDIR": str(tmp_path)}, *UNDER_RAY)
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
