"""Memory that the machine has and that is free, in bytes."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class Available:
    """Free memory and what limits it ("MemAvailable", or the path of a cgroup)."""

    size: int
    limit: str


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _reclaimable(group: Path) -> int:
    """Page cache that the kernel drops before it kills anything: inactive_file of memory.stat."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stat = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return int(stat.get("total_inactive_file", stat.get("inactive_file", "0")))


def _meminfo(proc: Path, name: str) -> int | None:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines if line.startswith(f"{name}:"))
    return next((int(words[1]) * 1024 for words in found), None)


def total(proc: Path = Path("/proc")) -> int:
    """MemTotal: all memory that the kernel manages; 0 where it does not say."""
    return _meminfo(proc, "MemTotal") or 0


def nodes(proc: Path = Path("/proc")) -> int:
    """NUMA nodes whose memory this process may use; at least 1."""
    try:
        lines = (proc / "self/status").read_text().splitlines()
    except OSError:
        return 1
    allowed = next((line.partition(":")[2] for line in lines if line.startswith("Mems_allowed_list:")), "")
    ranges = [part.strip().partition("-") for part in allowed.split(",") if part.strip()]
    return max(sum(int(last or first) - int(first) + 1 for first, _, last in ranges), 1)


def _cgroups(proc: Path, sys: Path) -> Iterable[tuple[Path, str, str]]:
    """(folder, name of its limit file, name of its usage file) for our cgroups and their parents."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = sys / "fs/cgroup", ("memory.max", "memory.current")
            if not (root / "cgroup.controllers").exists():
                root = root / "unified"
        elif "memory" in controllers.split(","):
            root, names = sys / "fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = root / path.lstrip("/")
        # Inside a container the path is that of the host; what is mounted there is our own group.
        if not folder.is_dir():
            folder = root
        while True:
            yield folder, *names
            if folder == root:
                break
            folder = folder.parent


def available(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Available:
    """The least of MemAvailable and what each memory cgroup (v1 or v2) above us still allows.

    On GB10 the CPU and the GPU share one memory, so this holds for the GPU as well, and is truer than
    cudaMemGetInfo, which counts the page cache as used.
    """
    free = _meminfo(proc, "MemAvailable")
    least = Available(_UNLIMITED, "unknown") if free is None else Available(free, "MemAvailable")
    for folder, limit_name, usage_name in _cgroups(proc, sys):
        limit, usage = _read_number(folder / limit_name), _read_number(folder / usage_name)
        if limit is None or usage is None or limit >= _UNLIMITED:
            continue
        free = max(0, limit - usage + _reclaimable(folder))
        if free < least.size:
            least = Available(free, str(folder / limit_name))
    return least


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
    for folder, limit_name, _ in _cgroups(proc, sys):
        own.setdefault(limit_name, folder)
    files = [folder / name for folder in own.values() for name in ("memory.events", "memory.oom_control")]
    return Kills(sum(_count(file, "oom_kill") for file in files), _count(proc / "vmstat", "oom_kill"))
