"""A memory cgroup for a test, of v1 or v2; it needs root, and no sandbox."""

import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from gb10.machine import gauges

_SYS = Path("/sys/fs/cgroup")


class NoCgroupsError(Exception):
    """None can be made here."""


def _places() -> Iterator[tuple[Path, str]]:
    """Folders that may take a new group, with the name of its limit's file."""
    if (_SYS / "memory/memory.limit_in_bytes").exists():
        yield _SYS / "memory", "memory.limit_in_bytes"
    for folder, limit, _ in gauges.groups("/proc", "/sys"):
        yield Path(folder), limit


class Cgroup:
    """A group with a limit of ``limit`` bytes, swap included. Raises NoCgroupsError."""

    def __init__(self, limit: int) -> None:
        error: OSError | None = None
        for parent, name in _places():
            self.folder = parent / f"gb10-test-{secrets.token_hex(4)}"
            try:
                self.folder.mkdir()
                try:
                    (self.folder / name).write_text(str(limit))
                except OSError:
                    self.folder.rmdir()
                    raise
            except OSError as failed:
                error = failed
                continue
            swap = self.folder / ("memory.memsw.limit_in_bytes" if "limit" in name else "memory.swap.max")
            if swap.exists():
                swap.write_text(str(limit) if "limit" in name else "0")
            usage = "memory.usage_in_bytes" if "limit" in name else "memory.current"
            self._gauge = gauges.Group(str(self.folder), name, usage)
            return
        raise NoCgroupsError(str(error))

    def enter(self) -> None:
        """Move the calling process into it."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def free(self) -> int:
        """Bytes that are left of the limit, as the watch counts."""
        found = self._gauge.read()
        assert found is not None
        return found[0]

    @property
    def kills(self) -> int:
        """Processes that the kernel has killed in it for want of memory."""
        for name in ("memory.oom_control", "memory.events"):
            if (self.folder / name).exists():
                return gauges.field((self.folder / name).read_bytes(), b"oom_kill") or 0
        return 0

    def remove(self) -> None:
        """Remove it, once its processes are gone."""
        deadline = time.monotonic() + 5
        while True:
            try:
                self.folder.rmdir()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
