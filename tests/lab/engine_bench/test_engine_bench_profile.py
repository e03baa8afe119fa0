"""A decode step out of the profiler's events."""

import gzip
import json
from pathlib import Path

from gb10_lab.engine_bench.profile import Event, short_name, step_of, write

STEP = 100_000
"""Nanoseconds."""


def _steps(count: int) -> list[Event]:
    """Each step: a graph of three kernels, two of which overlap, and a sampler after a gap of 10 us."""
    events = []
    for i in range(count):
        at = i * STEP
        graph, sampler = 1000 + i, 5000 + i
        events += [
            Event("void ns::first<int>(int*)", at, 20_000, graph),
            Event("shared", at + 10_000, 20_000, graph),
            Event("shared", at + 31_000, 9_000, graph),
            Event("sampler", at + 50_000, 5_000, sampler),
        ]
    return events


def test_a_step_has_its_launches_and_times() -> None:
    step = step_of(reversed(_steps(10)))
    assert step is not None
    assert step.steps == 6  # ten, less the three warm ones, less the last, which no other ends
    assert (step.launches, step.launches_in_graph) == (4, 3)
    assert step.wall == 0.1
    assert abs(step.busy - 0.044) < 1e-9  # 20 + 10 more + 9 + 5 us
    assert abs(step.busy_outside - 0.005) < 1e-9
    assert abs(step.idle_long - 0.010) < 1e-9  # the gap of 1 us inside of the graph is none


def test_overlap_counts_once_on_the_path() -> None:
    step = step_of(_steps(8))
    assert step is not None
    kernels = {kernel.name: kernel for kernel in step.kernels}
    assert set(kernels) == {"first<int>(int*)", "shared", "sampler"}
    shared = kernels["shared"]
    assert (shared.launches, shared.in_graph, kernels["sampler"].in_graph) == (2, True, False)
    assert abs(shared.microseconds - 29) < 1e-9
    assert abs(shared.path_microseconds - 19) < 1e-9


def test_graphs_of_a_prefill_do_not_begin_a_step() -> None:
    pieces = [Event("piece", -9000 * number - at, 10, number) for number in (1, 2, 3, 4) for at in (0, 1000)]
    more = [Event("more", i * STEP + 41_000 + 10 * n, 5, 1000 + i) for i in range(10) for n in range(9)]
    assert step_of(pieces + _steps(10) + more) == step_of(_steps(10) + more)


def test_without_graphs_a_step_is_told_by_its_rarest_kernel() -> None:
    alone = [Event(e.name, e.start, e.duration, i) for i, e in enumerate(_steps(10))]
    prefill = [Event("prefill", -900 * i, 10, 100 + i) for i in range(1, 6)]
    step = step_of(prefill + alone)
    assert step is not None
    assert (step.steps, step.launches, step.launches_in_graph, step.wall) == (6, 4, 0, 0.1)
    assert step.busy == step.busy_outside


def test_too_few_steps_are_none() -> None:
    assert step_of(_steps(4)) is None
    assert step_of([]) is None


def test_events_are_kept(tmp_path: Path) -> None:
    write(_steps(2), tmp_path / "out" / "kept.json.gz")
    with gzip.open(tmp_path / "out" / "kept.json.gz", "rt") as file:
        kept = json.load(file)
    assert kept["events"][3] == [2, 50_000, 5_000, 5000]
    assert kept["names"][2] == "sampler"


def test_names_are_short() -> None:
    assert short_name("void gb10::(anonymous namespace)::gate_up<8>(int)") == "gate_up<8>(int)"
