"""The results as a table, as JSON and as a picture."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gb10.errors import UserError
from gb10.files import read_json
from gb10_lab.speculative import distribution
from gb10_lab.speculative.acceptance import Counters
from gb10_lab.speculative.equality import TOP
from gb10_lab.speculative.measure import FULL, Results, Row
from gb10_lab.speculative.prompts import Prompt

_LISTED = 12
"""Divergences that the table lists; the JSON file has all."""


LENGTH = 0.1
"""By how much an accepted length may differ from a recorded one of nearly the same text."""

EXACT_LENGTH = 0.04
"""By how much it may differ from what float32 accepts on the same text: near-ties of the draft head."""


def read_lengths(file: Path) -> dict[tuple[int, str], float]:
    """Accepted lengths of a JSON file of `content`, by number of drafts and name of the draft vocabulary.

    Raises UserError when the file has none.
    """
    content = read_json(file)
    try:
        rows = [row for row in content["rows"] if row["draft"]]
        return {(row["draft"], row["vocabulary"]): float(row["accepted_length"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is no speculative.json ({error!r})") from error


def other_lengths(results: Results, recorded: Mapping[tuple[int, str], float]) -> list[str]:
    """A line for each setting whose accepted length is not the recorded one, or that has none."""
    lines = []
    for row in results.rows:
        if not row.draft:
            continue
        what, expected = (
            f"{row.draft} drafts, vocabulary {row.vocabulary}",
            recorded.get((row.draft, row.vocabulary)),
        )
        if expected is None:
            lines.append(f"{what}: not recorded")
        elif not abs(row.counters.length - expected) <= LENGTH:
            lines.append(f"{what}: accepted length {row.counters.length:.2f}, recorded {expected:.2f}")
    return lines


def inexact_lengths(results: Results) -> list[str]:
    """A line for each setting whose accepted length is not what float32 accepts on the same text."""
    return [
        f"{row.draft} drafts: accepted length {row.counters.length:.3f}, float32 {row.expected.length:.3f}"
        for row in results.rows
        if row.expected is not None and not abs(row.counters.length - row.expected.length) <= EXACT_LENGTH
    ]


def table(results: Results, bound: float) -> str:
    """The text for the terminal: at most 80 columns."""
    base = results.rows[0].speed
    deepest = max((row.draft for row in results.rows), default=0)
    positions = "".join(f"{position:>6}" for position in range(1, deepest + 1))
    lines = [
        f"drafts  vocabulary {'accepted at':<{len(positions)}}  length   tok/s  ratio   equal",
        f"{'':18} {positions}",
    ]
    for row in results.rows:
        rates = "".join(f"{rate:6.2f}" for rate in row.counters.rates)
        equal = row.comparison.prompts - len(row.comparison.divergences)
        lines.append(
            f"{row.draft:>6}  {_vocabulary(row):<10} {rates:<{len(positions)}} {row.counters.length:7.2f} "
            f"{row.speed:7.1f} {row.speed / base:6.2f} {equal:>3} of {row.comparison.prompts}"
        )
    lines += [
        f"{row.draft:>6}  on its text float32 accepts {_rates(row.expected)}"
        for row in results.rows
        if row.expected is not None
    ]
    lines += ["", *_divergences(results.rows, bound)]
    lines += _errors(results.rows)
    if results.sampling:
        lines += ["", f"same distribution when sampling? (different below p = {distribution.THRESHOLD:g})"]
        lines += [
            f"  {test.name:<44} p = {test.p_value:<9.2g} {_verdict(test.passed, test.must_differ)}"
            for test in results.sampling
        ]
    if results.skipped:
        lines += ["", "left out by the time limit:", *(f"  {what}" for what in results.skipped)]
    return "\n".join(lines)


def _rates(counters: Counters) -> str:
    return f"{' '.join(f'{rate:.3f}' for rate in counters.rates)}, length {counters.length:.3f}"


def _vocabulary(row: Row) -> str:
    if row.draft == 0:
        return "-"
    return row.vocabulary if row.size is None or "/" not in row.vocabulary else f"{row.vocabulary} {row.size}"


def _verdict(passed: bool, must_differ: bool) -> str:
    word = "different" if passed == must_differ else "same"
    return word if passed else f"{word}: FAILED"


def _divergences(rows: Sequence[Row], bound: float) -> list[str]:
    runs = Counter(entry for row in rows for entry in row.comparison.divergences)
    if not runs:
        return [f"greedy output: all tokens compared are equal, in {len(rows)} runs"]
    # Runs meet the same places: their sums would be no rates.
    worst_run = max(rows[1:], key=_rate, default=rows[0])
    lines = [
        "greedy output: first differences in the tokens compared, of one run",
        f"  no drafts, prompts alone instead of in batches  {_rate_text(rows[0])}",
        f"  drafts, the run with most                       {_rate_text(worst_run)}",
        f"different places in all {len(rows)} runs: {len(runs)}",
        "  prompt  token  without    with  gap (nats)  runs",
    ]
    worst = sorted(runs.items(), key=lambda item: (-item[0].gap, item[0].prompt, item[0].position))
    for entry, count in worst[:_LISTED]:
        beyond = "  NO NEAR-TIE" if entry.gap > bound else ""
        lines.append(
            f"  {entry.prompt:>6} {entry.position:>6} {entry.reference:>8} {entry.other:>7}"
            f" {entry.gap:>11.3f} {count:>5}{beyond}"
        )
    if len(worst) > _LISTED:
        lines.append(f"  ... {len(worst) - _LISTED} more with gaps of at most {worst[_LISTED][0].gap:.3f}")
    return lines


def _errors(rows: Sequence[Row]) -> list[str]:
    measured = [(row, row.errors) for row in rows if row.errors is not None]
    if not measured:
        return []
    lines = [
        "",
        "log-probabilities against the same weights in float32, in 1e-3 nats",
        "  drafts              tokens    mean     rms     99 %  largest",
    ]
    for row, errors in measured:
        for what, error in (("prompts", errors.prompts), ("completions", errors.completions)):
            figures = [1e3 * value for value in (error.mean, error.rms, error.high, error.largest)]
            lines.append(
                f"  {row.draft:>6} {what:<12}{error.tokens:>8}"
                f"{figures[0]:>+8.2f}{figures[1]:>8.2f}{figures[2]:>9.1f}{figures[3]:>9.0f}"
            )
    return lines


def _rate(row: Row) -> float:
    return len(row.comparison.divergences) / max(1, row.comparison.tokens)


def _rate_text(row: Row) -> str:
    return f"{len(row.comparison.divergences)} of {row.comparison.tokens} ({_rate(row):.2%})"


def content(results: Results, bound: float, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The measured part of the JSON file."""
    base = results.rows[0].speed
    return {
        "near_tie_nats": bound,
        "skipped": results.skipped,
        "gap_is_a_lower_bound_beyond_top": TOP,
        "prompts": [
            {"name": prompt.name, "kind": prompt.kind, "tokens": len(prompt.ids)} for prompt in prompts
        ],
        "rows": [
            {
                "draft": row.draft,
                "vocabulary": row.vocabulary,
                "draft_vocabulary_size": row.size,
                "drafts": row.counters.drafts,
                "accepted": list(row.counters.accepted),
                "acceptance": row.counters.rates,
                "accepted_length": row.counters.length,
                "tokens_per_second": row.speed,
                "ratio": row.speed / base,
                "compared_prompts": row.comparison.prompts,
                "compared_tokens": row.comparison.tokens,
                "divergences": [dataclasses.asdict(entry) for entry in row.comparison.divergences],
                "float32_accepts": row.expected
                and {"steps": row.expected.drafts, "length": row.expected.length},
                "float32_errors_nats": row.errors and dataclasses.asdict(row.errors),
            }
            for row in results.rows
        ],
        "sampling": [
            {
                "name": test.name,
                "must_differ": test.must_differ,
                "passed": test.passed,
                "p_value": test.p_value,
                "tests": {name: dataclasses.asdict(part) for name, part in test.tests.items()},
            }
            for test in results.sampling
        ],
    }


def plot(results: Results, file: Path, title: str) -> None:
    """Draw acceptance by position (most drafts) and accepted length by drafts, one line a vocabulary.

    The format follows the name's ending. Needs matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    # Names of elements that do not change from run to run.
    matplotlib.rcParams["svg.hashsalt"] = "gb10"
    from matplotlib import pyplot

    rows = [row for row in results.rows if row.draft]
    deepest = max(row.draft for row in rows)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for name in dict.fromkeys(row.vocabulary for row in rows):
        own = [row for row in rows if row.vocabulary == name]
        label = "all tokens" if name == FULL else f"{name} ({own[0].size} tokens)"
        deep = next(row for row in own if row.draft == deepest)
        left.plot(range(1, deepest + 1), deep.counters.rates, marker="o", label=label)
        right.plot([row.draft for row in own], [row.counters.length for row in own], marker="o", label=label)
    left.set(xlabel=f"position of the draft token (of {deepest})", ylabel="accepted", ylim=(0, 1))
    right.set(xlabel="draft tokens", ylabel="tokens for each target step", ylim=(1, None))
    for axes, last in ((left, deepest), (right, deepest)):
        axes.set_xticks(range(1, last + 1))
        axes.grid(alpha=0.3)
    left.legend(title="drafts from")
    figure.suptitle(title)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)
