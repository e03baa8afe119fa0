"""Timing on the GPU: CUDA graphs over rotated buffers, replayed in turns."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gb10_lab.kernel_bench.figures import Spread, spread

MIN_BYTES_PER_GRAPH = 2 * 10**9
MAX_CALLS = 512
MIN_SAMPLES = 9
MAX_SAMPLES = 200


@dataclass(frozen=True)
class Version:
    """One way to do the work. ``run(i)`` does it once with copy ``i`` of the weights, 0 to ``copies - 1``.

    ``restore`` puts back what the first and the last copy's runs change besides their output.
    """

    name: str
    run: Callable[[int], torch.Tensor]
    copies: int
    restore: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Recorded:
    """A graph of ``calls`` calls; ``before`` queues what a replay needs and is not timed."""

    graph: torch.cuda.CUDAGraph
    calls: int
    before: Callable[[], object] = lambda: None

    def replay(self) -> None:
        """Queue ``before`` and the graph."""
        self.before()
        self.graph.replay()


def idle_kernel() -> None:
    """Launch a kernel that does nothing."""
    torch.cuda._sleep(0)


def record(version: Version, bytes_each: int, apart: bool = False) -> Recorded:
    """Record a graph that goes through all copies, at least once and long enough to be timed well.

    With ``apart`` an idle kernel stands before every call, so that a call cannot begin while the one before
    it ends (programmatic dependent launch).
    """
    calls = max(version.copies, min(MAX_CALLS, MIN_BYTES_PER_GRAPH // bytes_each))

    def all_calls() -> None:
        for i in range(calls):
            if apart:
                idle_kernel()
            version.run(i % version.copies)

    return Recorded(capture(all_calls, lambda: version.run(0)), calls)


def record_idle(calls: int = MAX_CALLS) -> Recorded:
    """Record a graph of idle kernels: what a node costs."""

    def all_calls() -> None:
        for _ in range(calls):
            idle_kernel()

    return Recorded(capture(all_calls, idle_kernel), calls)


def in_turns(recorded: list[Recorded], budget_s: float) -> list[Spread]:
    """Replay the graphs in turns (A B A B) and give the microseconds per call of each.

    All replays are queued at once: the host is not waited for between them.
    """
    for each in recorded:
        each.replay()
    torch.cuda.synchronize()
    start, end = _event(), _event()
    start.record()
    for each in recorded:
        each.replay()
    end.record()
    torch.cuda.synchronize()
    once_ms = start.elapsed_time(end)
    samples = max(MIN_SAMPLES, min(MAX_SAMPLES, int(budget_s * 1e3 / max(once_ms, 1e-3))))

    events = [[(_event(), _event()) for _ in recorded] for _ in range(samples)]
    for turn in events:
        for each, (start, end) in zip(recorded, turn, strict=True):
            each.before()
            start.record()
            each.graph.replay()
            end.record()
    torch.cuda.synchronize()
    return [
        spread([1e3 * turn[i][0].elapsed_time(turn[i][1]) / each.calls for turn in events])
        for i, each in enumerate(recorded)
    ]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


@functools.cache
def _stream() -> torch.cuda.Stream:
    """One stream for all captures: cuBLAS keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream()


def capture(all_calls: Callable[[], None], warm_up: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Record what ``all_calls`` launches. ``warm_up`` runs first: it loads and compiles kernels."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(_stream()):
        warm_up()
        torch.cuda.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            all_calls()
        finally:
            graph.capture_end()
    torch.cuda.synchronize()
    return graph
