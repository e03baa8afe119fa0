"""A decode step out of the profiler's events."""

from gb10_lab.engine_bench.profile import GRAPH_LAUNCH, Event, short_name, step_of

STEP = 100_000
"""Nanoseconds."""


def _steps(count: int) -> list[Event]:
    """Each step: a graph of three kernels, two of which overlap, and a sampler after a gap of 10 us."""
    events = []
    for i in range(count):
        at = i * STEP
        graph, sampler = 1000 + i, 5000 + i
        events += [
            Event(GRAPH_LAUNCH, at - 500, 100, graph, False),
            Event("void ns::first<int>(int*)", at, 20_000, graph, True),
            Event("shared", at + 10_000, 20_000, graph, True),
            Event("shared", at + 31_000, 9_000, graph, True),
            Event("sampler", at + 50_000, 5_000, sampler, True),
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
    piece = [Event(GRAPH_LAUNCH, -9000, 10, 1, False), Event("piece", -8000, 10, 1, True)]
    assert step_of(piece + _steps(10)) == step_of(_steps(10))


def test_without_graphs_there_is_no_step() -> None:
    assert step_of([event for event in _steps(10) if event.on_gpu]) is None
    assert step_of([]) is None


def test_names_are_short() -> None:
    assert short_name("void gb10::(anonymous namespace)::gate_up<8>(int)") == "gate_up<8>(int)"
