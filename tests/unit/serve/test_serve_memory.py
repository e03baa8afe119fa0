"""`gb10 serve` in a real memory cgroup of which another process takes the rest: it sheds, then ends in time.

The server is stand_in.py; tests/e2e/test_confined.py does the same with vLLM. Where no cgroup can be made (no
root, a sandbox) these tests are skipped; those of tests/unit/machine look at the same code with files made
there.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confined.group import Cgroup, NoCgroupsError
from confined.neighbour import Neighbour
from test_serve_death import Run, check_nothing_left

from gb10.errors import EXIT_FAILED, EXIT_MEMORY
from gb10.machine.watch import Board
from gb10.units import MIB

LIMIT = 400 * MIB
"""With it requests are refused below 100 MiB, and the end comes below 50."""


@pytest.fixture
def group() -> Iterator[Cgroup]:
    try:
        made = Cgroup(LIMIT)
    except NoCgroupsError as error:
        pytest.skip(f"no memory cgroup can be made: {error}")
    yield made
    made.remove()


@pytest.fixture
def neighbour(group: Cgroup) -> Iterator[Neighbour]:
    made = Neighbour(group)
    yield made
    made.end()


Start = Callable[..., Run]


@pytest.fixture
def start(group: Cgroup, tmp_path: Path) -> Iterator[Start]:
    made: list[Run] = []

    def run(stage: str, *limits: int | str | None) -> Run:
        made.append(Run(tmp_path, stage, limits, group.enter))
        made[-1].reach()
        return made[-1]

    yield run
    for one in made:
        one.close()


def wait_for(done: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def board(run: Run) -> Board:
    return Board(str(next(run.temporary.glob("gb10-serve-*/memory"))))


def test_it_sheds_then_ends_before_the_kernel_kills(
    group: Cgroup, neighbour: Neighbour, start: Start
) -> None:
    made = start("ready")
    seen = board(made)
    free = group.free
    neighbour.take((free - 120 * MIB) // MIB)
    time.sleep(0.3)
    assert not seen.full, seen.words
    neighbour.take(40)
    wait_for(lambda: seen.full)
    assert "MiB of 400 MiB is free" in seen.words
    wait_for(lambda: any(line.startswith("memory is short: ") for line in made.lines))
    assert made.process.poll() is None
    began = time.monotonic()
    neighbour.take(40)
    last = made.end()
    assert time.monotonic() - began < 8
    assert made.process.returncode == EXIT_MEMORY
    assert last.startswith("error: vLLM was ended while serving, before memory ran out: "), last
    assert "of 400 MiB is free" in last and "GB10_MEMORY_STOP: 50 MiB" in last, last
    check_nothing_left(made)
    assert group.kills == 0


def test_memory_that_comes_back(group: Cgroup, neighbour: Neighbour, start: Start) -> None:
    made = start("ready")
    seen = board(made)
    neighbour.take((group.free - 80 * MIB) // MIB)
    wait_for(lambda: seen.full)
    wait_for(lambda: any(line.startswith("memory is short: ") for line in made.lines))
    neighbour.end()
    wait_for(lambda: not seen.full)
    wait_for(lambda: "memory is no longer short" in made.lines)
    assert made.process.poll() is None


@pytest.mark.parametrize("stage", ["core", "load"])
def test_while_it_loads(group: Cgroup, neighbour: Neighbour, start: Start, stage: str) -> None:
    """The engine core heeds no SIGTERM then."""
    made = start(stage)
    neighbour.take((group.free - 30 * MIB) // MIB)
    last = made.end()
    assert made.process.returncode == EXIT_MEMORY
    assert "while loading, before memory ran out" in last
    check_nothing_left(made)
    assert group.kills == 0


def test_without_the_watch_the_kernel_kills(group: Cgroup, neighbour: Neighbour, start: Start) -> None:
    """The control: the same neighbour. vLLM's processes are those that the kernel chooses."""
    made = start("ready", "off", "off", "off")
    with contextlib.suppress(OSError):
        neighbour.take(group.free // MIB + 20)
    last = made.end()
    assert group.kills > 0
    assert made.process.returncode == EXIT_FAILED
    assert "out of memory: the kernel killed a process for want of memory in this memory cgroup" in last, last
    check_nothing_left(made)


def test_vllm_is_the_first_that_the_kernel_would_take(start: Start) -> None:
    made = start("ready")
    adjusted = {pid: Path(f"/proc/{pid}/oom_score_adj").read_text().strip() for pid in made.pids}
    assert adjusted.pop(made.keeper) == "0"
    assert set(adjusted.values()) == {"1000"}
    assert Path(f"/proc/{os.getpid()}/oom_score_adj").read_text().strip() == "0"
