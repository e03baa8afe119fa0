"""When memory counts as short: made-up limits, pressure and time; files of /proc and /sys are made here."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from gb10.machine import watch
from gb10.machine.gauges import Gauge
from gb10.machine.watch import Board, Limits, Pressure, Watch
from gb10.units import GIB, MIB

DGX_SPARK = 128_526_123_008


class Fixed(Gauge):
    """A limit that says what it is told to."""

    def __init__(self, total: int, name: str = "MemAvailable") -> None:
        self.total, self.name, self.free, self.files = total, name, total, ()

    def read(self) -> tuple[int, int] | None:
        return self.free, self.total


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("total", "shed", "stop"),
    [
        (DGX_SPARK, DGX_SPARK // 40, DGX_SPARK // 40 // 2),
        (1024 * GIB, 4 * GIB, 2 * GIB),
        (20 * GIB, 512 * MIB, 256 * MIB),
        (4 * GIB, 256 * MIB, 128 * MIB),
        (400 * MIB, 100 * MIB, 50 * MIB),
    ],
)
def test_the_levels_that_nobody_set(total: int, shed: int, stop: int) -> None:
    limits = Limits()
    assert (limits.shed(total), limits.stop(total), limits.pressure) == (shed, stop, 60.0)


def test_the_levels_of_the_user() -> None:
    limits = Limits(3 * GIB, GIB, 20.0)
    assert (limits.shed(DGX_SPARK), limits.stop(DGX_SPARK), limits.pressure) == (3 * GIB, GIB, 20.0)
    off = Limits("off", "off", "off")
    assert (off.shed(DGX_SPARK), off.stop(DGX_SPARK), off.pressure) == (0, 0, 0.0)
    # One of them alone: requests are refused before the end in any case, or never.
    assert Limits(None, 8 * GIB).shed(DGX_SPARK) == 8 * GIB
    assert Limits("off", 8 * GIB).shed(DGX_SPARK) == 0
    assert Limits(3 * GIB, "off").stop(DGX_SPARK) == 0
    assert Limits(*limits.words).words == limits.words


def levels(made: Watch, gauge: Fixed, free: Sequence[int]) -> list[int]:
    found = []
    for gauge.free in free:
        found.append(made.look())
    return found


def test_free_memory_sheds_then_stops() -> None:
    gauge = Fixed(160 * GIB)
    made = Watch(Limits(), [gauge])
    calm, shed, stop, lost = Watch.CALM, Watch.SHED, Watch.STOP, Watch.LOST
    # 4 GiB and 2 GiB; an eighth more than the first ends it.
    more = 4 * GIB + 512 * MIB
    seen = levels(made, gauge, [9 * GIB, 4 * GIB, 4 * GIB - 1, 4 * GIB, more - 1, more, more - 1])
    assert seen == [calm, calm, shed, shed, shed, calm, calm]
    assert levels(made, gauge, [2 * GIB, 2 * GIB - 1, GIB, GIB - 1]) == [shed, stop, stop, lost]
    assert made.words == "1024 MiB of 160.0 GiB is free (MemAvailable; GB10_MEMORY_STOP: 2.0 GiB)"


def test_each_limit_has_its_own_levels() -> None:
    machine, group = Fixed(128 * GIB), Fixed(8 * GIB, "/sys/memory.max")
    made = Watch(Limits(), [machine, group])
    group.free = 300 * MIB
    assert made.look() == Watch.CALM
    group.free = 255 * MIB
    assert made.look() == Watch.SHED
    assert made.words == "255 MiB of 8.0 GiB is free (/sys/memory.max; GB10_MEMORY_SHED: 256 MiB)"
    machine.free = GIB
    assert made.look() == Watch.STOP
    assert "MemAvailable" in made.words


def test_levels_that_are_off() -> None:
    gauge = Fixed(128 * GIB)
    assert levels(Watch(Limits("off", "off"), [gauge]), gauge, [GIB, 0]) == [Watch.CALM] * 2
    assert levels(Watch(Limits("off"), [gauge]), gauge, [3 * GIB, GIB]) == [Watch.CALM, Watch.STOP]
    assert levels(Watch(Limits(None, "off"), [gauge]), gauge, [3 * GIB, 0]) == [Watch.SHED] * 2


def test_it_looks_again_before_memory_can_be_gone() -> None:
    """8 GiB a second is what one core writes."""
    gauge = Fixed(160 * GIB)
    made = Watch(Limits(), [gauge])
    pauses = []
    for gauge.free in (100 * GIB, 6 * GIB, 4 * GIB + 1, 3 * GIB, GIB):
        made.look()
        pauses.append(made.pause)
    assert pauses[0] == 1.0
    assert pauses[1:] == pytest.approx([0.25, 0.02, 0.125, 0.02])


def test_stalls_shed_at_once_and_stop_when_they_last(tmp_path: Path) -> None:
    file = tmp_path / "memory"

    def stall(percent: float) -> None:
        text = (
            f"some avg10=99.00 avg60=0.00 avg300=0.00 total=1\nfull avg10={percent:.2f} avg60=0.00 total=1\n"
        )
        file.write_text(text)

    stall(0)
    clock = Clock()
    made = Watch(Limits(), [Fixed(128 * GIB)], [Pressure(str(file))], clock)
    assert made.look() == Watch.CALM
    stall(60)
    assert made.look() == Watch.SHED
    clock.now += 29
    assert made.look() == Watch.SHED
    stall(59)
    assert made.look() == Watch.CALM
    stall(80)
    assert made.look() == Watch.SHED
    clock.now += 30
    assert made.look() == Watch.STOP
    assert made.words == (
        f"all processes waited for memory in 80 % of the last 10 s, for 30 s ({file}; "
        "GB10_MEMORY_PRESSURE: 60)"
    )
    assert Watch(Limits(None, None, "off"), [], [Pressure(str(file))], clock).look() == Watch.CALM
    assert Watch(Limits(), [], [Pressure(str(tmp_path / "gone"))], clock).look() == Watch.CALM


def test_the_files_of_pressure(tmp_path: Path) -> None:
    proc, group = tmp_path / "proc", tmp_path / "sys/fs/cgroup/box"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text("0::/box\n")
    group.mkdir(parents=True)
    (group.parent / "cgroup.controllers").touch()
    assert watch.pressures(proc, tmp_path / "sys") == []
    (group / "memory.pressure").touch()
    (proc / "pressure").mkdir()
    (proc / "pressure/memory").touch()
    found = [one.name for one in watch.pressures(proc, tmp_path / "sys")]
    assert found == [str(proc / "pressure/memory"), str(group / "memory.pressure")]


def test_a_limit_that_is_lifted_or_gone(tmp_path: Path) -> None:
    from gb10.machine.gauges import Group

    for name, text in (("memory.max", "1000"), ("memory.current", "400"), ("memory.stat", "")):
        (tmp_path / name).write_text(text)
    group = Group(str(tmp_path), "memory.max", "memory.current")
    assert group.read() == (600, 1000)
    (tmp_path / "memory.max").write_text("max\n")
    assert group.read() is None
    group.close()
    assert Group(str(tmp_path / "gone"), "memory.max", "memory.current").read() is None


def test_the_board(tmp_path: Path) -> None:
    path = str(tmp_path / "memory")
    writer, reader = Board(path, write=True), Board(path)
    assert not reader.full
    writer.write("a longer text: " + "é" * 300)
    assert reader.full
    assert reader.words.startswith("a longer text: éé")
    writer.write("short")
    assert (reader.full, reader.words) == (True, "short")
    writer.write(None)
    assert not reader.full
    assert Board(path, write=True).words == "short"
    with pytest.raises(OSError):
        Board(str(tmp_path / "none"))


def test_here() -> None:
    made = Watch.here(Limits("off", "off", "off"))
    assert made.look() == Watch.CALM
    assert made.pause == 1.0
