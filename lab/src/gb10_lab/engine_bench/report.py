"""Tables of one configuration and of several beside each other, from what `command` wrote. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gb10_lab.engine_bench.configurations import STOCK
from gb10_lab.engine_bench.figures import PREDICTION, predicted_gb10_ms

WIDTH = 100
SCHEMA = 1
_LABEL = 30
_KERNELS = 40
Run = Mapping[str, Any]


def _batch(run: Run, part: str, batch: int) -> Mapping[str, Any] | None:
    return next((row for row in run.get(part) or [] if row["batch"] == batch), None)


def _median(row: Mapping[str, Any] | None, key: str) -> float | None:
    return row[key]["median"] if row and row.get(key) else None


def rate(run: Run, batch: int) -> float | None:
    """Tokens a second when decoding."""
    return _median(_batch(run, "decode", batch), "tokens_per_second")


def graph_ms(run: Run, batch: int = 1) -> float | None:
    """The CUDA graph of a step, alone."""
    return _median(_batch(run, "decode", batch), "graph_ms")


def gpu_ms(run: Run, batch: int = 1) -> float | None:
    """The GPU's time of a step: its CUDA graph alone, and what runs outside of it, from the profile."""
    graph, step = graph_ms(run, batch), _batch(run, "profile", batch)
    if graph is None or step is None:
        return None
    # A profile that tells no graph has its kernels outside of one: then that time is all there is.
    return graph + float(step["busy_outside"]) if step["launches_in_graph"] else float(step["busy"])


def launches(run: Run, batch: int = 1) -> float | None:
    """Kernels, copies and clears of a step."""
    step = _batch(run, "profile", batch)
    return step["launches"] if step else None


def gigabytes(run: Run) -> float | None:
    """Weights that a token reads."""
    parts = run.get("resident")
    return sum(part["read"] for part in parts["components"]) / 1e9 if parts else None


def prefill_rate(run: Run) -> float | None:
    """Tokens a second of a prompt of 8192 tokens."""
    return _median(run.get("prefill"), "tokens_per_second")


def predicted_ms(run: Run) -> float | None:
    """A step at batch 1 on a GB10, predicted."""
    read, count = gigabytes(run), launches(run)
    if read is None or count is None:
        return None
    return predicted_gb10_ms(read * 1e9, run["resident"]["state_bytes"], count)


def _predicted_rate(run: Run) -> float | None:
    step = predicted_ms(run)
    return None if step is None else 1e3 / step


Figure = Callable[[Run], float | None]
_ROWS: tuple[tuple[str, Figure, str, bool | None], ...] = (
    # label, figure, format, whether more is better (None: no ratio)
    ("batch 1, tok/s", lambda run: rate(run, 1), ".1f", True),
    ("batch 4, tok/s", lambda run: rate(run, 4), ".1f", True),
    ("batch 16, tok/s", lambda run: rate(run, 16), ".0f", True),
    ("prefill 8192, tok/s", prefill_rate, ".0f", True),
    ("step at batch 1, ms", lambda run: _median(_batch(run, "decode", 1), "step_ms"), ".3f", False),
    ("  CUDA graph alone, ms", graph_ms, ".3f", False),
    ("  GPU: graph, head, sampler, ms", gpu_ms, ".3f", False),
    ("  host floor, ms", lambda run: _median(_batch(run, "host_floor", 1), "step_ms"), ".3f", False),
    ("CUDA graph at batch 4, ms", lambda run: graph_ms(run, 4), ".3f", False),
    ("CUDA graph at batch 16, ms", lambda run: graph_ms(run, 16), ".3f", False),
    ("launches a step", launches, ".0f", False),
    ("weights a token, GB", gigabytes, ".3f", False),
    ("start to first answer, s", lambda run: run["start"]["first_answer_seconds"], ".1f", False),
    ("GB10 step, ms, predicted", predicted_ms, ".1f", False),
    ("GB10 tok/s, predicted", _predicted_rate, ".0f", True),
)

_BARS: tuple[tuple[str, str, Figure, float, float, bool], ...] = (
    # what, unit, figure, must, aim, whether the figure is divided by the best stock one
    ("batch 1, tok/s", "x", lambda run: rate(run, 1), 2.0, 2.5, True),
    ("batch 4, tok/s", "x", lambda run: rate(run, 4), 1.6, 2.0, True),
    ("batch 16, tok/s", "x", lambda run: rate(run, 16), 1.15, 1.3, True),
    ("prefill 8192, tok/s", "x", prefill_rate, 0.9, 1.0, True),
    ("GPU time a step", "ms", gpu_ms, 2.2, 1.75, False),
    ("launches a step", "", launches, 400, 300, False),
)


def compare(runs: Sequence[Run], names: Sequence[str]) -> str:
    """All runs beside each other, each row with the ratio to the best stock run; then the bars to reach.

    At most 100 columns wide with five runs.
    """
    wide = max(13, min(20, (WIDTH - _LABEL) // max(1, len(runs))))
    devices = dict.fromkeys(f"{run['device']['name']}, driver {run['device']['driver']}" for run in runs)
    lines = [*devices]
    if len(devices) > 1:
        lines.append("NOT ONE CARD: these ratios compare machines")
    shown = [name.removeprefix("ours-").replace(f"{STOCK}-", f"{STOCK} ") for name in names]
    lines += ["", " " * _LABEL + "".join(f"{name[: wide - 1]:>{wide}}" for name in shown)]
    for label, figure, style, more in _ROWS:
        values = [figure(run) for run in runs]
        if all(value is None for value in values):
            continue
        best = best_stock(runs, figure, bool(more))
        cells = (_cell(value, best, style, more) for value in values)
        lines.append(f"{label:<{_LABEL}}" + "".join(f"{cell:>{wide}}" for cell in cells))
    lines += ["", "in brackets: times the best stock run of that row", PREDICTION]
    lines += _differences(runs, names)
    if any(map(is_stock, runs)):
        lines += ["", *bars(runs, names)]
    return "\n".join(lines) + "\n"


def best_stock(runs: Sequence[Run], figure: Figure, more: bool) -> float | None:
    """The best of the stock runs."""
    values = [value for run in runs if is_stock(run) and (value := figure(run)) is not None]
    return (max if more else min)(values, default=None)


def is_stock(run: Run) -> bool:
    """Whether a run is a baseline."""
    return str(run["configuration"]["name"]).startswith(STOCK)


def _cell(value: float | None, best: float | None, style: str, more: bool | None) -> str:
    if value is None:
        return "-"
    text = format(value, style)
    if best is None or more is None or not value or not best:
        return text
    return f"{text} ({value / best if more else best / value:.2f})"


def bars(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """What must be reached and what is aimed at, and where the best of our runs stands."""
    ours = [(run, name) for run, name in zip(runs, names, strict=True) if not is_stock(run)]
    if not ours:
        return []
    lines = [f"{'to reach':<24}{'must':>8}{'aim':>8}{'best of ours':>16}"]
    for label, unit, figure, must, aim, relative in _BARS:
        best = best_stock(runs, figure, True) if relative else 1.0
        found = [(value / best, name) for run, name in ours if best and (value := figure(run)) is not None]
        head = f"{label:<24}{_bound(must, unit):>8}{_bound(aim, unit):>8}"
        if not found:
            lines.append(f"{head}{'not measured':>16}")
            continue
        value, name = (max if relative else min)(found)
        passed = [value >= bound if relative else value <= bound for bound in (must, aim)]
        verdict = "aim reached" if passed[1] else "reached" if passed[0] else "MISSED"
        lines.append(f"{head}{_bound(value, unit):>16}  {verdict} ({name})")
    return lines


def _bound(value: float, unit: str) -> str:
    return f"{value:.2f} {unit}".strip() if unit else f"{value:.0f}"


def _differences(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """How far log-probabilities of decoding lie from the first run's."""
    found = [(run, name) for run, name in zip(runs, names, strict=True) if run.get("log_probabilities")]
    if len(found) < 2:
        return []
    first, its_name = found[0]
    lines = ["", f"log-probabilities of forced decoding, {first['layers']} layers, against {its_name}"]
    for run, name in found[1:]:
        own, other = (each["log_probabilities"] for each in (run, first))
        if own["ids"] != other["ids"] or run["layers"] != first["layers"]:
            lines.append(f"  {name}: other ids or another number of layers")
            continue
        largest, mean = difference(own["log_probabilities"], other["log_probabilities"])
        alike, of = same_tokens(own["greedy"], other["greedy"])
        gap = f"largest difference {largest:.3f} nats, mean {mean:.4f}"
        lines.append(f"  {name:<24} {gap}; greedy: {alike} of {of} tokens alike")
    return lines


def difference(one: Sequence[Any], other: Sequence[Any]) -> tuple[float, float]:
    """Largest and mean absolute difference of two nested lists of numbers of one shape.

    Raises ValueError when the shapes differ; NaN where one has a NaN.
    """
    pairs = list(zip(_flat(one), _flat(other), strict=True))
    gaps = [abs(a - b) for a, b in pairs]
    if any(math.isnan(gap) for gap in gaps):
        return math.nan, math.nan
    return max(gaps), sum(gaps) / len(gaps)


def same_tokens(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Tokens that are the same up to each prompt's first difference, and all tokens."""
    alike = 0
    for a, b in zip(one, other, strict=True):
        differ = (i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
        alike += next(differ, len(a))
    return alike, sum(map(len, one))


def _flat(values: Sequence[Any]) -> list[float]:
    return [each for value in values for each in (_flat(value) if isinstance(value, list) else [value])]


def table(run: Run) -> str:
    """One run: figures, bytes by part, kernels of a step."""
    name = str(run["configuration"]["name"])
    lines = [f"{name}: {run['configuration']['about']}", compare([run], [name]).rstrip()]
    if run.get("resident"):
        lines += ["", f"{'part':<24}{'MB loaded':>12}{'MB a token':>12}  element types"]
        for part in run["resident"]["components"]:
            kinds = ", ".join(f"{kind} {size / 1e6:.0f}" for kind, size in part["dtypes"].items())
            lines.append(
                f"{part['name']:<24}{part['loaded'] / 1e6:>12.1f}{part['read'] / 1e6:>12.2f}  {kinds}"[:WIDTH]
            )
    for step in run.get("profile") or []:
        lines += ["", *_step(step)]
    lines += run.get("dispatched") or []
    for line in run.get("failures") or []:
        lines.append(f"FAILED: {line}"[:WIDTH])
    return "\n".join(lines) + "\n"


def _step(step: Mapping[str, Any]) -> list[str]:
    lines = [
        f"batch {step['batch']}, profiler on, {step['steps']} steps: {step['launches']:.0f} launches "
        f"({step['launches_in_graph']:.0f} in the graph), wall {step['wall']:.3f} ms,",
        f"  busy {step['busy']:.3f} ms (outside of the graph {step['busy_outside']:.3f}), "
        f"idle in gaps above 5 us {step['idle_long']:.3f} ms",
        f"{'launches':>9}{'us each':>9}{'us a step':>11}{'on the path':>12}  kernel",
    ]
    for kernel in step["kernels"][:_KERNELS]:
        each = kernel["microseconds"] / kernel["launches"]
        mark = "" if kernel["in_graph"] else " (outside)"
        lines.append(
            f"{kernel['launches']:>9.1f}{each:>9.2f}{kernel['microseconds']:>11.1f}"
            f"{kernel['path_microseconds']:>12.1f}  {kernel['name']}{mark}"[:WIDTH]
        )
    return lines
