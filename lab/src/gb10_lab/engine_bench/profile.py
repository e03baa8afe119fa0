"""From the profiler's GPU events to one decode step: its kernels, launches, busy and idle time."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

LONG_GAP_NS = 5000
"""Idle time above this is the processor's doing; below, it is what lies between two nodes of a graph."""
WARM_STEPS = 3
"""First steps that are left out."""
_LASTING = 0.7
"""Share of the time that a kernel of every step is seen in; a prefill takes less than the rest of it."""
_NAME = 72


@dataclass(frozen=True)
class Event:
    """A kernel, copy or clear on the GPU."""

    name: str
    start: int
    """Nanoseconds."""
    duration: int
    correlation: int
    """The launch's number: the same for all that one launch of a CUDA graph ran."""


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel, per step."""

    name: str
    launches: float
    microseconds: float
    """Summed over its launches."""
    path_microseconds: float
    """By how much their ends move the latest end forward: what overlaps counts once."""
    in_graph: bool


@dataclass(frozen=True)
class Step:
    """One decode step, as the median over the profiled steps; times in milliseconds."""

    steps: int
    launches: float
    launches_in_graph: float
    wall: float
    busy: float
    """Some kernel ran."""
    busy_outside: float
    """Some kernel ran that is not of the CUDA graph: the head, the sampler, preparation."""
    idle_long: float
    """In gaps of more than 5 us, which the processor makes; the profiler makes them longer."""
    kernels: tuple[Kernel, ...]


def events_of(results: Any) -> list[Event]:
    """The events of torch's Kineto results that ``step_of`` reads."""
    return [
        Event(event.name(), event.start_ns(), event.duration_ns(), event.correlation_id())
        for event in results.events()
        if str(event.device_type()).endswith("CUDA")
    ]


def write(events: Sequence[Event], path: Path) -> None:
    """Keep the events: gzipped JSON {names, events: [[place among names, start, duration, launch], ...]}."""
    names: dict[str, int] = {}
    rows = [
        (names.setdefault(event.name, len(names)), event.start, event.duration, event.correlation)
        for event in events
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", compresslevel=5) as file:
        json.dump({"names": list(names), "events": rows}, file)


def step_of(events: Iterable[Event]) -> Step | None:
    """The decode step in ``events``; None where too few ran to tell one.

    A step begins with the first kernel of its CUDA graph and ends where the next begins. Where no launch has
    several kernels (an eager engine, or a profiler that does not number launches), it begins with the rarest
    kernel that runs all the time, and nothing counts as part of a graph.
    """
    kernels = sorted(events, key=lambda event: event.start)
    begins: dict[int, int] = {}
    sizes: dict[int, int] = defaultdict(int)
    for event in kernels:
        begins.setdefault(event.correlation, event.start)
        sizes[event.correlation] += 1
    graphs = {launch for launch, size in sizes.items() if size > 1}
    # Prefill runs small graphs piece by piece; the graph of a step is the one with the most kernels.
    largest = max(sizes.values(), default=0)
    marks = sorted(begins[graph] for graph in graphs if 2 * sizes[graph] > largest)
    if len(graphs) < 2:
        marks, graphs = _rarest(kernels), set()
    marks = marks[WARM_STEPS:]
    if len(marks) < 2:
        return None
    windows = [
        [event for event in kernels if first <= event.start < after] for first, after in pairwise(marks)
    ]
    parts = [_measure(window, graphs) for window in windows]
    walls = [after - first for first, after in pairwise(marks)]
    return Step(
        steps=len(windows),
        launches=median(len(window) for window in windows),
        launches_in_graph=median(sum(e.correlation in graphs for e in window) for window in windows),
        wall=median(walls) / 1e6,
        busy=median(busy for busy, _, _ in parts) / 1e6,
        busy_outside=median(outside for _, outside, _ in parts) / 1e6,
        idle_long=median(idle for _, _, idle in parts) / 1e6,
        kernels=_kernels(windows, graphs),
    )


def _rarest(kernels: Sequence[Event]) -> list[int]:
    """When the kernel began that ran least often of those that ran from beginning to end: once a step."""
    starts: dict[str, list[int]] = defaultdict(list)
    for event in kernels:
        starts[event.name].append(event.start)
    whole = kernels[-1].start - kernels[0].start if kernels else 0
    lasting = [
        times
        for times in starts.values()
        if len(times) >= WARM_STEPS + 2 and times[-1] - times[0] >= _LASTING * whole
    ]
    return min(lasting, key=len, default=[])


def _measure(window: Sequence[Event], graphs: set[int]) -> tuple[int, int, int]:
    """Nanoseconds: some kernel running; one outside of graphs; idle in long gaps."""
    busy, idle = _union(window)
    outside, _ = _union([event for event in window if event.correlation not in graphs])
    return busy, outside, idle


def _union(events: Iterable[Event]) -> tuple[int, int]:
    busy = idle = 0
    end: int | None = None
    for event in events:
        stop = event.start + event.duration
        if end is None or event.start > end:
            if end is not None and event.start - end > LONG_GAP_NS:
                idle += event.start - end
            busy += event.duration
            end = stop
        elif stop > end:
            busy += stop - end
            end = stop
    return busy, idle


def _kernels(windows: Sequence[Sequence[Event]], graphs: set[int]) -> tuple[Kernel, ...]:
    count: dict[tuple[str, bool], int] = defaultdict(int)
    total: dict[tuple[str, bool], int] = defaultdict(int)
    path: dict[tuple[str, bool], int] = defaultdict(int)
    for window in windows:
        latest = window[0].start if window else 0
        for event in sorted(window, key=lambda event: event.start + event.duration):
            key = (short_name(event.name), event.correlation in graphs)
            stop = event.start + event.duration
            count[key] += 1
            total[key] += event.duration
            path[key] += max(0, stop - max(latest, event.start))
            latest = max(latest, stop)
    steps = len(windows)
    rows = (
        Kernel(key[0], count[key] / steps, total[key] / steps / 1e3, path[key] / steps / 1e3, key[1])
        for key in count
    )
    return tuple(sorted(rows, key=lambda kernel: -kernel.path_microseconds))


def short_name(name: str) -> str:
    """A kernel's name without its return type, namespaces and most template arguments."""
    name = re.sub(r"^void ", "", name).replace("(anonymous namespace)::", "")
    base = re.match(r"[\w:]*", name)
    head = base[0] if base else ""
    return (head.split("::")[-1] + name[len(head) :])[:_NAME]
