"""What each limit on memory still allows: the machine's, and that of each memory cgroup (v1, v2) above us.

Light, since `gb10.serve.keeper` reads them while memory runs out: of the standard library `os` alone. The
files are opened once and read in place.
"""

import os
from collections.abc import Iterator

Root = str | os.PathLike[str]
"""The place of /proc or /sys."""

UNLIMITED = 1 << 60
MACHINE = "MemAvailable"
"""Name of the machine's own gauge: of the line that it reads."""

WORKING_CACHE = 256 << 20
"""Bytes of a cgroup's page cache that do not count as free: the libraries that its processes run, and what
they read just now. (Measured: vLLM's CPU engine maps 143 MiB of files.)"""

_MOST = 1 << 15
"""Bytes that are read of a file; memory.stat of cgroup v2 has about 2 KiB."""


class Pinned:
    """A file of the kernel that stays open. One that cannot be opened says nothing."""

    def __init__(self, path: str) -> None:
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = -1

    def read(self) -> bytes:
        """What it says now; nothing where it is gone."""
        try:
            return os.pread(self._file, _MOST, 0)
        except OSError:
            return b""

    def close(self) -> None:
        """Close it."""
        if self._file >= 0:
            os.close(self._file)


def number(text: bytes) -> int | None:
    """A file that holds one number; None for any other, such as "max"."""
    text = text.strip()
    return int(text) if text.isdigit() else None


def field(text: bytes, name: bytes) -> int | None:
    """The number behind ``name`` (and a colon, or not) at the beginning of a line; None where it is not."""
    for line in text.split(b"\n"):
        words = line.split()
        if len(words) > 1 and words[0].removesuffix(b":") == name and words[1].isdigit():
            return int(words[1])
    return None


class Gauge:
    """One limit on memory. ``name`` tells the user which: MemAvailable, or the path of a cgroup's limit."""

    name: str
    files: tuple[Pinned, ...]

    def read(self) -> tuple[int, int] | None:
        """(bytes that are free, bytes that are allowed in all); None where there is no limit, or no word."""
        raise NotImplementedError

    def close(self) -> None:
        """Close its files."""
        for file in self.files:
            file.close()


class Machine(Gauge):
    """All memory. MemAvailable is what can be had without swapping: free, and page cache that can go."""

    name = MACHINE

    def __init__(self, proc: Root) -> None:
        self.files = (Pinned(os.path.join(proc, "meminfo")),)  # noqa: PTH118

    def read(self) -> tuple[int, int] | None:
        """As `Gauge.read` says."""
        text = self.files[0].read()
        free, total = field(text, b"MemAvailable"), field(text, b"MemTotal")
        return None if free is None or total is None else (free << 10, total << 10)


def cache(stat: bytes) -> int:
    """Page cache that the kernel drops before it kills anything, out of a cgroup's memory.stat.

    As the kernel makes MemAvailable (si_mem_available in mm/show_mem.c): all file pages but what must stay,
    which is half of them at most, and half of the slabs that can be reclaimed. Shared memory is no file page.
    """

    def of(name: bytes) -> int:
        # v1 has this cgroup alone under the plain name.
        found = field(stat, b"total_" + name)
        return (field(stat, name) or 0) if found is None else found

    files = of(b"active_file") + of(b"inactive_file")
    return files - min(files // 2, WORKING_CACHE) + of(b"slab_reclaimable") // 2


class Group(Gauge):
    """A memory cgroup: its limit, less what it uses, and its page cache that can go."""

    def __init__(self, folder: str, limit: str, usage: str) -> None:
        self.name = os.path.join(folder, limit)  # noqa: PTH118
        paths = (self.name, os.path.join(folder, usage), os.path.join(folder, "memory.stat"))  # noqa: PTH118
        self.files = tuple(map(Pinned, paths))

    def read(self) -> tuple[int, int] | None:
        """As `Gauge.read` says."""
        limit = number(self.files[0].read())
        if limit is None or limit >= UNLIMITED:
            return None
        used = number(self.files[1].read())
        return None if used is None else (max(0, limit - used + cache(self.files[2].read())), limit)


def groups(proc: Root, sys: Root) -> Iterator[tuple[str, str, str]]:
    """(folder, name of its limit file, name of its usage file) for our cgroups and their parents."""
    try:
        with open(os.path.join(proc, "self/cgroup")) as file:  # noqa: PTH118, PTH123
            lines = file.read().splitlines()
    except OSError:
        return
    mounts = os.path.join(sys, "fs/cgroup")  # noqa: PTH118
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = mounts, ("memory.max", "memory.current")
            if not os.path.exists(f"{root}/cgroup.controllers"):  # noqa: PTH110
                root = f"{root}/unified"
        elif "memory" in controllers.split(","):
            root, names = f"{mounts}/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = f"{root}/{path.strip('/')}".rstrip("/")
        # Inside a container the path is that of the host; what is mounted there is our own group.
        if not os.path.isdir(folder):  # noqa: PTH112
            folder = root
        while True:
            yield folder, *names
            if folder == root:
                break
            folder = folder.rpartition("/")[0]


def gauges(proc: Root = "/proc", sys: Root = "/sys") -> list[Gauge]:
    """The machine's gauge, and those of the memory cgroups above us, nearest first."""
    return [Machine(proc), *(Group(*names) for names in groups(proc, sys))]
