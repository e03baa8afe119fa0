"""Memory that the machine has and that is free, in bytes."""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gb10.machine import gauges
from gb10.units import text_size


@dataclass(frozen=True)
class Available:
    """Free memory, what limits it ("MemAvailable", or the path of a cgroup), and what that allows in all."""

    size: int
    limit: str
    total: int = 0


def _meminfo(proc: Path, name: bytes) -> int | None:
    try:
        found = gauges.field((proc / "meminfo").read_bytes(), name)
    except OSError:
        return None
    return None if found is None else found << 10


def total(proc: Path = Path("/proc")) -> int:
    """MemTotal: all memory that the kernel manages; 0 where it does not say."""
    return _meminfo(proc, b"MemTotal") or 0


def nodes(proc: Path = Path("/proc")) -> int:
    """NUMA nodes whose memory this process may use; at least 1."""
    try:
        lines = (proc / "self/status").read_text().splitlines()
    except OSError:
        return 1
    allowed = next((line.partition(":")[2] for line in lines if line.startswith("Mems_allowed_list:")), "")
    ranges = [part.strip().partition("-") for part in allowed.split(",") if part.strip()]
    return max(sum(int(last or first) - int(first) + 1 for first, _, last in ranges), 1)


def available(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Available:
    """The least of MemAvailable and what each memory cgroup (v1 or v2) above us still allows.

    On GB10 the CPU and the GPU share one memory, so this holds for the GPU as well (`unified`).
    """
    least = Available(gauges.UNLIMITED, "unknown")
    for gauge in gauges.gauges(proc, sys):
        found = gauge.read()
        gauge.close()
        if found is not None and found[0] < least.size:
            least = Available(found[0], gauge.name, found[1])
    return least


def unified(free: Available, device: int | None, proc: Path = Path("/proc")) -> Available:
    """What a GPU that shares the CPU's memory may have: the lesser of ``free`` and what CUDA can give.

    ``free`` is `available`'s, ``device`` what cudaMemGetInfo calls free: "the amount of memory on the device
    that is free according to the OS" (cuMemGetInfo). That leaves out the page cache and all that the kernel
    would reclaim for an allocation (vllm #35313: 75 of 142 GiB were left). So what can be reclaimed comes
    on top: MemAvailable less MemFree. What the driver keeps of MemFree for itself (a GB10's 121 GiB were 102
    to CUDA) stays off.
    """
    have, unused = _meminfo(proc, b"MemAvailable"), _meminfo(proc, b"MemFree")
    if device is None or have is None or unused is None:
        return free
    reclaimable = max(have - unused, 0)
    if device + reclaimable >= free.size:
        return free
    words = f"cudaMemGetInfo {text_size(device)}, page cache {text_size(reclaimable)}"
    return Available(device + reclaimable, words, free.total)


def drop(files: Iterable[Path]) -> None:
    """Let the page cache of ``files`` go. The kernel would, too, but late: an allocation waits for that.

    Pages that are dirty, or mapped by a process, stay.
    """
    for path in files:
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)


@dataclass(frozen=True)
class Kills:
    """How many processes the kernel has killed for want of memory, in our own cgroup and in the machine."""

    group: int
    machine: int


def _count(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.split()[:1] == [name])


def oom_kills(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Kills:
    """What the kernel counts up to now; 0 where it does not say."""
    own: dict[str, Path] = {}
    for folder, limit_name, _ in gauges.groups(proc, sys):
        own.setdefault(limit_name, Path(folder))
    files = [folder / name for folder in own.values() for name in ("memory.events", "memory.oom_control")]
    return Kills(sum(_count(file, "oom_kill") for file in files), _count(proc / "vmstat", "oom_kill"))
