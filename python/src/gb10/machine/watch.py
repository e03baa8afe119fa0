"""Memory while a server loads and serves: when to take no more requests, and when to end it.

`gb10.serve.keeper` looks, so that a stuck engine hides nothing; like all that it reads, this needs the
standard library alone. Each limit on memory (`gb10.machine.gauges`) has two levels of its own:

- below `shed`, requests that compute are refused (`gb10.serve.shed` reads that from a `Board`);
- below `stop`, vLLM is ended.

Both come before the kernel runs out. On a machine with unified memory (GB10) it may kill nothing then: the
GPU's pages belong to no process that it could choose, and the host is lost until somebody takes its power
(vllm #56824, open-gpu-kernel-modules #1358, dgx-spark-playbooks #97). The stalls that the kernel counts
(PSI) are looked at as well, since MemAvailable may look fine while all wait for memory (earlyoom #320).
"""

import mmap
import os
import time
from collections.abc import Callable, Sequence

from gb10.machine.gauges import Gauge, Pinned, Root, gauges, groups
from gb10.units import GIB, MIB, text_size

ENV_NAME = "GB10_SERVE_MEMORY"
"""File of the `Board`, for vLLM's processes."""

LIMITS_NAME = "GB10_SERVE_MEMORY_LIMITS"
"""`Limits.words` as JSON, for the same: what the board is written by."""

BOARD = "memory"
"""Its name in a scratch folder."""

SHED, STOP, PRESSURE = "GB10_MEMORY_SHED", "GB10_MEMORY_STOP", "GB10_MEMORY_PRESSURE"
"""The user's variables: two sizes and a percentage, or "off"."""

OFF = "off"
PRESSURE_LIMIT = 60.0
"""Percent of the last 10 s in which all processes stalled for memory. Systemd's oomd acts at this, too
(DefaultMemoryPressureLimit in oomd.conf(5)), and as late as this:"""
PRESSURE_SECONDS = 30.0

_FILL = 8 * GIB
"""Bytes a second that memory may vanish with: what one core writes. (earlyoom's rule, with 6 GiB.)"""

_SHORTEST, _LONGEST = 0.02, 1.0
"""Seconds between two looks."""

_BOARD = 512
_CALM, _FULL = b"\0", b"\1"


def default_shed(total: int) -> int:
    """Bytes below which requests are refused: 1/40 of ``total``, from 256 MiB to 4 GiB; 3.0 GiB on a GB10.

    The budget (`gb10.serve.budget`) leaves more than that, so a server that got what it planned with comes
    here only when others grow. No more than a quarter of a small cgroup.
    """
    return min(max(total // 40, 256 * MIB), 4 * GIB, total // 4)


def default_stop(total: int) -> int:
    """Bytes below which vLLM is ended: half of `default_shed`; 1.5 GiB on a GB10.

    One core fills that in 0.19 s, and the watch looks again within 20 ms there.
    """
    return default_shed(total) // 2


class Board:
    """A level and one line of text in a file that processes map: written by the keeper, read by a server."""

    def __init__(self, path: str, *, write: bool = False) -> None:
        flags = os.O_RDWR | os.O_CREAT if write else os.O_RDONLY
        file = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            if write:
                os.ftruncate(file, _BOARD)
            access = mmap.ACCESS_WRITE if write else mmap.ACCESS_READ
            self._map = mmap.mmap(file, _BOARD, access=access)
        finally:
            os.close(file)

    @property
    def full(self) -> bool:
        """Whether memory is short."""
        return self._map[:1] == _FULL

    @property
    def words(self) -> str:
        """Why."""
        return self._map[1:].rstrip(b"\0").decode(errors="replace")

    def write(self, words: str | None) -> None:
        """Say that memory is short, and why; None: it is not."""
        if words is not None:
            text = words.encode()[: _BOARD - 1]
            self._map[1:] = text + bytes(_BOARD - 1 - len(text))
        self._map[:1] = _CALM if words is None else _FULL


class Limits:
    """The user's levels in bytes and percent: None for the defaults, "off" for none."""

    def __init__(
        self,
        shed: int | str | None = None,
        stop: int | str | None = None,
        pressure: float | str | None = None,
    ) -> None:
        self.words = (shed, stop, pressure)
        """What it was made of, for JSON."""
        self._shed, self._stop = (0 if isinstance(given, str) else given for given in (shed, stop))
        self.pressure = 0.0 if isinstance(pressure, str) else PRESSURE_LIMIT if pressure is None else pressure
        """0: nobody looks."""

    def shed(self, total: int) -> int:
        """Free bytes of ``total`` below which requests are refused; never below `stop`."""
        if self._shed is not None:
            return self._shed and max(self._shed, self.stop(total))
        return max(default_shed(total), self.stop(total))

    def calm(self, total: int) -> int:
        """Free bytes of ``total`` from which requests are taken again: an eighth more than `shed`."""
        shed = self.shed(total)
        return shed + shed // 8

    def kept(self, total: int) -> int:
        """Free bytes of ``total`` with which a server takes requests, and goes on."""
        return max(self.calm(total), self.stop(total))

    def stop(self, total: int) -> int:
        """Free bytes of ``total`` below which vLLM is ended."""
        return default_stop(total) if self._stop is None else self._stop


class Pressure:
    """PSI: the share of the last 10 s in which all that could run waited for memory, in percent."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._file = Pinned(path)

    def read(self) -> float:
        """The share; 0 where the kernel says nothing."""
        for line in self._file.read().split(b"\n"):
            if line.startswith(b"full avg10="):
                try:
                    return float(line[11:].split()[0])
                except (ValueError, IndexError):
                    return 0.0
        return 0.0


def pressures(proc: Root = "/proc", sys: Root = "/sys") -> list[Pressure]:
    """The machine's, and that of our own cgroup where it is one of v2 with such a file."""
    paths = [os.path.join(proc, "pressure/memory")]  # noqa: PTH118
    for folder, limit, _ in groups(proc, sys):
        if limit == "memory.max":
            paths.append(f"{folder}/memory.pressure")
            break
    return [Pressure(path) for path in paths if os.path.exists(path)]  # noqa: PTH110


class Watch:
    """Looks at memory. `level` is what was seen last, `words` the figures behind it."""

    CALM, SHED, STOP, LOST = range(4)
    """LOST: below half of what stops; nobody has time for an orderly end."""

    def __init__(
        self,
        limits: Limits,
        found: Sequence[Gauge],
        stalls: Sequence[Pressure] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits, self._gauges, self._stalls, self._clock = limits, found, stalls, clock
        self._stalled_since: float | None = None
        self.level, self.words = self.CALM, ""
        self.pause = _SHORTEST
        """Seconds until the next look: less than the nearest level can take to come."""

    @classmethod
    def here(cls, limits: Limits) -> "Watch":
        """This process's memory."""
        return cls(limits, gauges(), pressures() if limits.pressure else ())

    def look(self) -> int:
        """Look at all limits; the level. It falls from SHED at `Limits.calm`."""
        before, self.level, left = self.level, self.CALM, float(_FILL)
        for gauge in self._gauges:
            if (found := gauge.read()) is None:
                continue
            free, total = found
            shed, stop = self._limits.shed(total), self._limits.stop(total)
            level = self.CALM
            if free < (self._limits.calm(total) if before >= self.SHED else shed):
                level = self.SHED
            if free < stop:
                level = self.LOST if free < stop // 2 else self.STOP
            left = min(left, free - (stop if level else max(shed, stop)))
            if level > self.level:
                below = stop if level >= self.STOP else shed
                of = f"{STOP if level >= self.STOP else SHED}: {text_size(below)}"
                self.level, self.words = (
                    level,
                    f"{text_size(free)} of {text_size(total)} is free ({gauge.name}; {of})",
                )
        self._look_at_stalls()
        self.pause = min(max(left / _FILL, _SHORTEST), _LONGEST)
        return self.level

    def _look_at_stalls(self) -> None:
        now = self._clock()
        worst = max(((one.read(), one.name) for one in self._stalls), default=(0.0, ""))
        if not self._limits.pressure or worst[0] < self._limits.pressure:
            self._stalled_since = None
            return
        since = self._stalled_since = now if self._stalled_since is None else self._stalled_since
        level = self.STOP if now - since >= PRESSURE_SECONDS else self.SHED
        if level > self.level:
            for_ = f", for {now - since:.0f} s" if level == self.STOP else ""
            self.level = level
            self.words = (
                f"all processes waited for memory in {worst[0]:.0f} % of the last 10 s{for_} ({worst[1]}; "
                f"{PRESSURE}: {self._limits.pressure:g})"
            )
