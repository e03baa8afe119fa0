"""What the keeper and `gb10 serve` do when memory is short, with levels that this machine is below or not.

test_serve_memory.py does it with memory that vanishes, where a cgroup can be made.
"""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_serve_death import Run, check_nothing_left

from gb10.errors import EXIT_MEMORY, MemoryShort, ServerFailed
from gb10.machine import memory
from gb10.machine.watch import Board, Limits
from gb10.serve.supervise import Server

PLENTY = 1 << 50
Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made: list[Run] = []

    def run(stage: str, *limits: int | str) -> Run:
        made.append(Run(tmp_path, stage, limits))
        return made[-1]

    yield run
    for one in made:
        one.close()


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_below_the_first_level_it_serves_on_and_says_so(start: Start) -> None:
    made = start("ready", PLENTY, "off", "off")
    made.reach()
    board = Board(str(next(made.temporary.glob("gb10-serve-*/memory"))))
    assert board.full
    assert "is free (" in board.words and "GB10_MEMORY_SHED: 1048576.0 GiB" in board.words
    wait_for(lambda: any(line.startswith("memory is short: ") for line in made.lines))
    assert made.process.poll() is None
    made.process.terminate()
    assert made.end() == "stopped"
    assert made.process.returncode == 0


@pytest.mark.parametrize("stage", ["import", "load"])
def test_below_the_second_level_it_ends(start: Start, stage: str) -> None:
    """Not below half of it: there is time for an orderly end."""
    made = start(stage, "off", memory.available().size * 3 // 2, "off")
    last = made.end()
    assert made.process.returncode == EXIT_MEMORY
    assert last.startswith("error: vLLM was ended while loading, before memory ran out: "), last
    assert "GB10_MEMORY_STOP" in last
    check_nothing_left(made)


def test_below_half_of_it_nobody_waits(start: Start) -> None:
    began = time.monotonic()
    made = start("load", "off", PLENTY, "off")
    made.process.wait(10)
    assert time.monotonic() - began < 4
    assert made.process.returncode == EXIT_MEMORY


def test_all_off(start: Start) -> None:
    made = start("ready", "off", "off", "off")
    made.reach()
    assert not Board(str(next(made.temporary.glob("gb10-serve-*/memory")))).full


def test_what_is_said_and_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, where the files are seen that leave the page cache: once each time it gets short."""
    dropped: list[list[Path]] = []
    monkeypatch.setattr(memory, "drop", lambda files: dropped.append(list(files)))
    limits = Limits("off", "off", "off")
    server = Server(["sleep", "60"], {"PATH": "/usr/bin:/bin"}, tmp_path, limits=limits)
    server.weights = [tmp_path / "model.safetensors"]
    board = Board(str(server._scratch.path / "memory"), write=True)

    def play() -> None:
        for words in ("1 MiB is free", None, "2 MiB is free"):
            board.write(words)
            time.sleep(0.6)
        server.stop()

    player = threading.Thread(target=play)
    try:
        player.start()
        with pytest.raises(ServerFailed, match="vLLM ended while serving"):
            server.wait()
    finally:
        player.join()
        server.stop()
    assert dropped == [server.weights] * 2
    assert capsys.readouterr().out.splitlines() == [
        "memory is short: 1 MiB is free; new requests get 503",
        "memory is no longer short",
        "memory is short: 2 MiB is free; new requests get 503",
    ]


def test_its_own_exit_code() -> None:
    assert MemoryShort("x").exit_code == 75
