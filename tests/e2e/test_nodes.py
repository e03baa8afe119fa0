"""Two `gb10 serve` that serve one model together, over the loopback interface: tokens, deaths, refusals."""

import contextlib
import os
import re
import signal
import subprocess
import time
import urllib.error
from collections.abc import Callable, Iterator

import pytest
from conftest import START_LIMIT, Serve, command, descendants, free_port
from node_pair import ALIKE, VARIABLES, Tokens, ends_over, start_pair, together, tokens_of, two_free_ports


def workers(serve: Serve) -> list[int]:
    """vLLM's workers on a node without an API: children of the keeper's child, but Python's tracker."""
    found = []
    for pid in descendants(serve.process.pid):
        with contextlib.suppress(OSError):
            parents = [pid]
            for _ in range(3):
                with open(f"/proc/{parents[-1]}/stat") as file:  # noqa: PTH123
                    parents.append(int(file.read().rpartition(")")[2].split()[1]))
            with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
                tracker = b"resource_tracker" in file.read()
            if parents[3] == serve.process.pid and not tracker:
                found.append(pid)
    return found


@pytest.fixture(scope="module")
def nodes_variables(serve_variables: dict[str, str]) -> dict[str, str]:
    return serve_variables | VARIABLES


@pytest.fixture(scope="module")
def alone(nodes_variables: dict[str, str]) -> Iterator[Callable[[int], Tokens]]:
    """The tokens of a server by itself with so many ranks."""

    def found(ranks: int) -> Tokens:
        serve = Serve([*ALIKE, "--tensor-parallel-size", str(ranks)], nodes_variables)
        try:
            serve.wait_ready()
            return tokens_of(serve)
        finally:
            serve.process.terminate()
            serve.process.wait(60)
            serve.kill()

    yield found


def test_tensor_parallel(alone: Callable[[int], Tokens], nodes_variables: dict[str, str]) -> None:
    """The tokens of two ranks on one node; then node 1's worker is killed, and the head says so."""
    pair = start_pair(nodes_variables, "--tensor-parallel-size", "2")
    try:
        assert tokens_of(pair.head) == alone(2)
        assert re.search(r"^node 1 \(127\.0\.0\.1\) is here$", pair.head.text, re.M)
        assert re.search(r"^ready after \d+ s: node 1 \(127\.0\.0\.1\) serves", pair.other.text, re.M)
        (worker,) = workers(pair.other)
        waiting = ends_over(pair, lambda: os.kill(worker, signal.SIGKILL))
        assert isinstance(waiting.ended, urllib.error.HTTPError) and waiting.ended.code == 500
        assert (pair.head.process.returncode, pair.other.process.returncode) == (1, 1), pair.text
        killed = r"its process VllmWorker-1 was killed by signal 9 \(SIGKILL\)"
        assert re.search(rf"gb10: error: node 1 \(127\.0\.0\.1\) failed: {killed}", pair.head.text), pair.text
        assert re.search(rf"gb10: error: vLLM ended while serving: {killed}", pair.other.text), pair.text
    finally:
        pair.kill()


def test_pipeline_parallel(alone: Callable[[int], Tokens], nodes_variables: dict[str, str]) -> None:
    """The tokens of one rank; then the head is killed, and node 1 does not wait for it."""
    pair = start_pair(nodes_variables, "--pipeline-parallel-size", "2")
    try:
        assert tokens_of(pair.head) == alone(1)
        ends_over(pair, pair.head.process.kill)
        assert pair.other.process.returncode == 1, pair.text
        gone = r"gb10: error: the head \(127\.0\.0\.1\) is gone: its gb10 serve ended without a word"
        assert re.search(gone, pair.other.text), pair.text
    finally:
        pair.kill()


def test_the_head_is_stopped_before_it_is_ready(nodes_variables: dict[str, str]) -> None:
    """It waits for node 1, which is not started; SIGTERM ends it as ever."""
    head = Serve([*ALIKE, "-tp", "2", *together(0, two_free_ports())], nodes_variables)
    try:
        until = time.monotonic() + START_LIMIT
        while "starting the engine" not in head.text and time.monotonic() < until:
            assert head.process.poll() is None, head.text
            time.sleep(0.2)
        head.process.terminate()
        assert head.process.wait(30) == 0, head.text
        assert head.lines[-1] == "stopped"
    finally:
        head.kill()


def test_a_node_that_nobody_waits_for(nodes_variables: dict[str, str]) -> None:
    """One line and its time, where there is no head."""
    port = two_free_ports()
    words = [*ALIKE, "--tensor-parallel-size", "2", *together(1, port)]
    other = Serve(words, nodes_variables | {"GB10_NODE_WAIT": "2"})
    try:
        assert other.process.wait(START_LIMIT) == 1, other.text
        said = f"the head did not come within 2 s (at 127.0.0.1 port {port + 1})"
        assert said in other.text, other.text
    finally:
        other.kill()


def test_nodes_that_do_not_go_together(nodes_variables: dict[str, str]) -> None:
    """Other settings than the head's: the node is refused, in one line, and the head goes on waiting."""
    port = two_free_ports()
    head = Serve([*ALIKE, "-tp", "2", "--dtype", "bfloat16", *together(0, port)], nodes_variables)
    other = Serve([*ALIKE, "-tp", "2", *together(1, port)], nodes_variables)
    try:
        assert other.process.wait(START_LIMIT) == 2, other.text
        said = "node 1 (127.0.0.1) has another --dtype than the head: not given, and the head bfloat16"
        assert f"gb10: error: the head refuses this node: {said}" in other.text, other.text
        assert f"refused 127.0.0.1: {said}" in head.text
        assert head.process.poll() is None
    finally:
        head.kill()
        other.kill()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--headless"], "--headless is for several nodes; add --nnodes N"),
        (["-tp", "2", "--nnodes", "2"], "--nnodes 2 needs --master-addr"),
        (
            ["--nnodes", "2", "--master-addr", "127.0.0.1", "--headless"],
            "the head (--node-rank 0) has the API",
        ),
        (["-n", "2", "-r", "1", "--master-addr", "127.0.0.1"], "is no head and has no API; add --headless"),
        (["--nnodes", "2", "--master-addr", "127.0.0.1"], "the model has 1 ranks"),
        (
            ["-tp", "2", "-n", "2", "--master-addr", "192.0.2.1"],
            "--master-addr 192.0.2.1 is no address of this",
        ),
    ],
)
def test_what_is_refused(nodes_variables: dict[str, str], words: list[str], said: str) -> None:
    done = subprocess.run(
        [*command(), *words, "--port", str(free_port())],
        capture_output=True,
        text=True,
        env=nodes_variables,
        timeout=START_LIMIT,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("gb10: error: ") == 1 and said in done.stderr, done.stderr
