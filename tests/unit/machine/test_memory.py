"""Memory that is free (proc and cgroup files written here)."""

import os
from pathlib import Path

import pytest

from gb10.machine import memory
from gb10.machine.memory import available
from gb10.units import GIB, MIB


class Machine:
    """A /proc and a /sys made of files."""

    def __init__(self, folder: Path, free: int = 64 * GIB) -> None:
        self.proc, self.sys = folder / "proc", folder / "sys"
        (self.proc / "self").mkdir(parents=True)
        self.proc.joinpath("meminfo").write_text(f"MemTotal: {128 << 20} kB\nMemAvailable: {free >> 10} kB\n")

    def group(self, membership: str, folder: str, files: dict[str, str]) -> None:
        self.proc.joinpath("self/cgroup").write_text(membership)
        place = self.sys / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (place / name).write_text(text)

    def available(self) -> memory.Available:
        return available(self.proc, self.sys)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_cgroups_it_is_mem_available(machine: Machine) -> None:
    assert machine.available() == memory.Available(64 * GIB, "MemAvailable", 128 * GIB)


@pytest.mark.parametrize(
    ("stat", "free"),
    [
        (
            f"anon 1\ninactive_file {GIB}\nactive_file {GIB}\nslab_reclaimable 4096\n",
            4 * GIB - 256 * MIB + 2048,
        ),
        # What its processes run stays, half of the pages at most.
        (f"file {GIB}\nshmem {GIB}\ninactive_file 0\nactive_file {100 * MIB}\n", 2 * GIB + 50 * MIB),
        ("", 2 * GIB),
    ],
)
def test_cgroup_v2_limit_counts_and_page_cache_is_free(machine: Machine, stat: str, free: int) -> None:
    machine.group("0::/box\n", "fs/cgroup", {"cgroup.controllers": "memory"})
    files = {
        "memory.max": str(8 * GIB),
        "memory.current": str(6 * GIB),
        "memory.stat": stat,
    }
    machine.group("0::/box\n", "fs/cgroup/box", files)
    found = machine.available()
    assert found.size == free
    assert found.total == 8 * GIB
    assert found.limit.endswith("fs/cgroup/box/memory.max")


def test_cgroup_v2_parent_limit_counts(machine: Machine) -> None:
    machine.group("0::/a/b\n", "fs/cgroup", {"cgroup.controllers": "memory"})
    machine.group("0::/a/b\n", "fs/cgroup/a", {"memory.max": str(4 * GIB), "memory.current": "0"})
    machine.group("0::/a/b\n", "fs/cgroup/a/b", {"memory.max": "max", "memory.current": "0"})
    assert machine.available().size == 4 * GIB


def test_cgroup_v2_in_a_container_whose_path_is_the_hosts(machine: Machine) -> None:
    files = {"cgroup.controllers": "memory", "memory.max": str(2 * GIB), "memory.current": str(GIB)}
    machine.group("0::/host/only/path\n", "fs/cgroup", files)
    assert machine.available().size == GIB


def test_cgroup_v1_limit_counts(machine: Machine) -> None:
    files = {
        "memory.limit_in_bytes": str(5 * GIB),
        "memory.usage_in_bytes": str(2 * GIB),
        "memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\ntotal_active_file {MIB}\n",
    }
    machine.group("4:cpu:/x\n3:memory,hugetlb:/docker/1\n", "fs/cgroup/memory/docker/1", files)
    assert machine.available().size == 4 * GIB - 255 * MIB


def test_cgroup_v1_without_limit_does_not_count(machine: Machine) -> None:
    files = {"memory.limit_in_bytes": "9223372036854771712", "memory.usage_in_bytes": "1"}
    machine.group("3:memory:/\n", "fs/cgroup/memory", files)
    assert machine.available().limit == "MemAvailable"


def test_usage_above_the_limit_is_no_free_memory(machine: Machine) -> None:
    files = {"cgroup.controllers": "", "memory.max": str(GIB), "memory.current": str(2 * GIB)}
    machine.group("0::/\n", "fs/cgroup", files)
    assert machine.available().size == 0


def test_this_machine_has_memory() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory.total() == total
    assert 0 < available().size <= total


def test_what_the_kernel_killed_in_our_own_cgroup(machine: Machine) -> None:
    machine.group("0::/a/b\n", "fs/cgroup", {"cgroup.controllers": "memory"})
    machine.group("0::/a/b\n", "fs/cgroup/a", {"memory.events": "oom 9\noom_kill 9\n"})
    machine.group("0::/a/b\n", "fs/cgroup/a/b", {"memory.events": "low 0\noom 3\noom_kill 2\n"})
    machine.proc.joinpath("vmstat").write_text("pgfault 12\noom_kill 17\n")
    assert memory.oom_kills(machine.proc, machine.sys) == memory.Kills(2, 17)


def test_what_the_kernel_killed_in_cgroup_v1(machine: Machine) -> None:
    files = {"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"}
    machine.group("3:memory:/box\n", "fs/cgroup/memory/box", files)
    assert memory.oom_kills(machine.proc, machine.sys) == memory.Kills(5, 0)


@pytest.mark.parametrize(("text", "count"), [("0", 1), ("0-1", 2), ("0,2-3,7", 4), ("", 1)])
def test_numa_nodes(machine: Machine, text: str, count: int) -> None:
    machine.proc.joinpath("self/status").write_text(f"Name:\tx\nMems_allowed_list:\t{text}\n")
    assert memory.nodes(machine.proc) == count


@pytest.mark.parametrize(
    ("device", "size", "limit"),
    [
        (None, 60, "MemAvailable"),
        # All that is free is free to CUDA too; the page cache comes on top.
        (20, 60, "MemAvailable"),
        (21, 60, "MemAvailable"),
        # The driver keeps 12 GiB to itself.
        (8, 48, "cudaMemGetInfo 8.0 GiB, page cache 40.0 GiB"),
    ],
)
def test_unified_memory_is_what_cuda_can_give(
    machine: Machine, device: int | None, size: int, limit: str
) -> None:
    machine.proc.joinpath("meminfo").write_text(
        f"MemTotal: {128 << 20} kB\nMemFree: {20 << 20} kB\nMemAvailable: {60 << 20} kB\n"
    )
    found = memory.unified(machine.available(), None if device is None else device * GIB, machine.proc)
    assert found == memory.Available(size * GIB, limit, 128 * GIB)


def test_a_cgroup_counts_for_unified_memory(machine: Machine) -> None:
    machine.group("0::/\n", "fs/cgroup", {"memory.max": str(9 * GIB), "memory.current": str(GIB)})
    machine.proc.joinpath("meminfo").write_text("MemTotal: 9 kB\nMemFree: 0 kB\nMemAvailable: 99999999 kB\n")
    machine.sys.joinpath("fs/cgroup/cgroup.controllers").touch()
    assert memory.unified(machine.available(), 20 * GIB, machine.proc).size == 8 * GIB


def test_page_cache_is_dropped(tmp_path: Path) -> None:
    """Seen by mincore, which says what of a mapped file is in memory."""
    import ctypes
    import mmap

    file = tmp_path / "weights"
    file.write_bytes(bytes(64 * mmap.PAGESIZE))
    with file.open("r+b") as opened:
        os.fsync(opened)

        def resident() -> int:
            with mmap.mmap(opened.fileno(), 0) as mapped:
                seen = (ctypes.c_ubyte * 64)()
                at = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
                assert ctypes.CDLL(None).mincore(ctypes.c_void_p(at), ctypes.c_size_t(len(mapped)), seen) == 0
                return sum(one & 1 for one in seen)

        assert resident() == 64
        memory.drop([tmp_path / "missing", file])
        assert resident() < 64


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    assert memory.total(tmp_path) == 0
    assert memory.nodes(tmp_path) == 1
    assert available(tmp_path, tmp_path).limit == "unknown"
