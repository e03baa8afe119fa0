"""`gb10 serve` with vLLM in a memory cgroup: it fits, it does not, and memory vanishes while it serves.

Where no memory cgroup can be made (no root, a sandbox) these are skipped. By hand, as root, with an
environment as conftest.py says: ``pytest -s tests/e2e/test_confined.py`` (four starts, 4 GiB).
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confined.group import Cgroup, NoCgroupsError
from confined.neighbour import Neighbour
from conftest import Serve

from gb10.errors import EXIT_FAILED, EXIT_MEMORY, EXIT_USAGE
from gb10.units import GIB, MIB

ROOM = 4 * GIB
"""The demo model's server has 1.5 GiB of its own, and refuses requests below 256 MiB."""


@pytest.fixture
def confine() -> Iterator[Callable[[int], Cgroup]]:
    made: list[Cgroup] = []

    def group(limit: int) -> Cgroup:
        try:
            made.append(Cgroup(limit))
        except NoCgroupsError as error:
            pytest.skip(f"no memory cgroup can be made: {error}")
        return made[-1]

    yield group
    for one in made:
        one.remove()


class Confined(Serve):
    """`gb10 serve` in a group, with a neighbour that takes memory there."""

    def __init__(self, group: Cgroup, variables: dict[str, str], *arguments: str) -> None:
        self.group = group
        super().__init__(
            ["--max-model-len", "256", "--max-num-seqs", "2", *arguments], variables, enter=group.enter
        )

    def ask(self) -> tuple[int, Any, Any]:
        """Status, body and headers of a short completion."""
        body = json.dumps({"model": "gb10-demo", "prompt": "def", "max_tokens": 4}).encode()
        request = urllib.request.Request(
            f"{self.url}/completions", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, json.load(error), error.headers


def within(seconds: float, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_memory_that_vanishes(confine: Callable[[int], Cgroup], serve_variables: dict[str, str]) -> None:
    group = confine(ROOM)
    serve = Confined(group, serve_variables)
    neighbour = Neighbour(group)
    try:
        serve.wait_ready()
        status, _, _ = serve.ask()
        assert status == 200
        print(f"ready with {group.free // MIB} MiB free of {ROOM // MIB}")

        neighbour.take((group.free - 200 * MIB) // MIB)
        within(5, lambda: serve.ask()[0] == 503)
        status, body, headers = serve.ask()
        print(status, headers["Retry-After"], body)
        assert "is free" in str(body) and headers["Retry-After"] == "10"
        with urllib.request.urlopen(f"http://127.0.0.1:{serve.port}/health", timeout=10) as health:
            assert health.status == 200
        within(5, lambda: "memory is short: " in serve.text)

        neighbour.end()
        within(5, lambda: serve.ask()[0] == 200)
        within(5, lambda: "memory is no longer short" in serve.text)

        neighbour = Neighbour(group)
        began = time.monotonic()
        neighbour.take((group.free - 100 * MIB) // MIB)
        assert serve.process.wait(20) == EXIT_MEMORY
        within(5, lambda: "before memory ran out" in serve.lines[-1])
        print(f"{serve.lines[-1]} (after {time.monotonic() - began:.1f} s)")
        assert group.kills == 0
        # The neighbour has what it asked for, and the group has room again.
        assert neighbour.process.poll() is None
        assert group.free > GIB
    finally:
        serve.kill()
        neighbour.end()


def test_the_same_without_the_watch(
    confine: Callable[[int], Cgroup], serve_variables: dict[str, str]
) -> None:
    """The control: the kernel kills."""
    group = confine(ROOM)
    off = {f"GB10_MEMORY_{name}": "off" for name in ("SHED", "STOP", "PRESSURE")}
    serve = Confined(group, serve_variables | off)
    neighbour = Neighbour(group)
    try:
        serve.wait_ready()
        neighbour.take(group.free // MIB + 100)
        assert serve.process.wait(60) == EXIT_FAILED
        within(5, lambda: "out of memory: the kernel killed" in serve.lines[-1])
        print(serve.lines[-1])
        assert group.kills > 0
    finally:
        serve.kill()
        neighbour.end()


def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    confine: Callable[[int], Cgroup], serve_variables: dict[str, str]
) -> None:
    group = confine(GIB)
    began = time.monotonic()
    serve = Confined(group, serve_variables)
    try:
        assert serve.process.wait(60) == EXIT_USAGE
        within(5, lambda: bool(serve.lines))
        print(serve.lines[-1])
        assert "not enough memory: " in serve.lines[-1]
        assert "vLLM 2.0 GiB" in serve.lines[-1] and "is free (" in serve.lines[-1]
        assert "288 MiB of it stays so (an eighth more than GB10_MEMORY_SHED)" in serve.lines[-1]
        assert time.monotonic() - began < 20
    finally:
        serve.kill()
