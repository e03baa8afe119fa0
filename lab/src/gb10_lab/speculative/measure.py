"""The measurements, one engine after another."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from gb10_lab.speculative import distribution
from gb10_lab.speculative.acceptance import Counters
from gb10_lab.speculative.engine import Engine, Settings
from gb10_lab.speculative.equality import Comparison, Completion, compare
from gb10_lab.speculative.exactness import Drafter, Errors, Float32
from gb10_lab.speculative.prompts import Prompt

FULL = "full"

SAMPLED_TOKENS = 4
SAMPLED_PROMPT = 32
"""Tokens of a prompt for the distribution test: it is computed thousands of times."""
_CONTROL_TEMPERATURE = 0.7
_SEED_STRIDE = 1_000_000


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    draft: tuple[int, ...]
    """Numbers of draft tokens, without 0."""
    vocabularies: tuple[tuple[str, tuple[int, ...] | None], ...]
    """Name and token ids of each draft vocabulary; None for all tokens."""
    tokens: int
    """New tokens for each prompt."""
    timed: int
    """Prompts that are also run alone, to time them."""
    alone: int
    """Prompts that are also run alone without drafts, to see what another batch does."""
    samples: int
    """Samples for each distribution test; 0 leaves it out."""
    float32: bool = False
    """Whether to compare log-probabilities with those of the same weights in float32."""
    expected: bool = False
    """Whether to say how many drafts float32 accepts on the same text."""
    limit: float = math.inf
    """Seconds after which nothing more is begun."""


@dataclass(frozen=True)
class Row:
    """One setting on all prompts."""

    draft: int
    vocabulary: str
    size: int | None
    """Tokens that a draft may be; None: all."""
    counters: Counters
    comparison: Comparison
    speed: float
    """Tokens per second of one request alone."""
    errors: Errors | None = None
    """Against float32."""
    expected: Counters | None = None
    """What float32 accepts on the same text."""


@dataclass(frozen=True)
class Sampling:
    """One distribution test."""

    name: str
    tests: dict[str, distribution.Test]
    must_differ: bool
    """A control: this sampler is wrong on purpose."""

    @property
    def p_value(self) -> float:
        """The smallest of the tests, corrected for their number."""
        return distribution.corrected(self.tests)

    @property
    def passed(self) -> bool:
        """A right sampler is not told apart, a wrong one is."""
        return (self.p_value < distribution.THRESHOLD) == self.must_differ


@dataclass(frozen=True)
class Results:
    """All that was measured."""

    rows: list[Row]
    """Without speculation first: prompts one by one against prompts in batches."""
    sampling: list[Sampling]
    skipped: list[str] = field(default_factory=list)
    """What the time limit left out."""


def measure(settings: Settings, plan: Plan, prompts: Sequence[Prompt]) -> Results:
    """Run everything. Progress goes to standard error, a line for each pass."""
    ids = [prompt.ids for prompt in prompts]
    sampled = [prompt[-SAMPLED_PROMPT:] for prompt in ids[:2]]
    results = Results([], [])
    float32 = Float32(settings.model) if plan.float32 else None
    drafter = Drafter(settings.model) if plan.expected else None
    clock = _Clock(plan.limit, results.skipped)
    with clock.told("no drafts: start"):
        engine = Engine(settings, 0)
    with engine:
        with clock.told("no drafts"):
            reference = engine.reference(ids, plan.tokens)
            # The control: other batches alone turn near-ties over, without any speculation.
            alone = [engine.greedy([prompt], plan.tokens)[0][0] for prompt in ids[: plan.alone]]
            speed = _speed(engine, ids, plan)
            control = compare(reference[: plan.alone], alone)
            results.rows.append(
                Row(0, FULL, None, Counters(), control, speed, _errors(float32, engine, ids, plan))
            )
        if plan.samples:
            with clock.told("no drafts, samples"):
                drawn = _draw(engine, sampled, plan, 0)
                wrong = _draw(engine, sampled, plan, 1, _CONTROL_TEMPERATURE)
            tests = distribution.same_distribution(drawn, wrong)
            name = f"control: no drafts, temperature {_CONTROL_TEMPERATURE}"
            results.sampling.append(Sampling(name, tests, True))
    for draft in plan.draft:
        # With CUDA graphs the vocabulary cannot change after the start.
        for vocabularies in [(one,) for one in plan.vocabularies] if settings.graphs else [plan.vocabularies]:
            if clock.late(f"{draft} drafts"):
                continue
            with clock.told(f"{draft} drafts: start"):
                engine = Engine(settings, draft, vocabularies[0][1])
            with engine:
                for name, vocabulary in vocabularies:
                    what = f"{draft} drafts, {name} vocabulary"
                    if clock.late(what):
                        continue
                    with clock.told(what):
                        if not settings.graphs:
                            engine.restrict(vocabulary)
                        row = _row(engine, reference, ids, plan, draft, name, vocabulary, drafter)
                        errors = None if vocabulary else _errors(float32, engine, ids, plan)
                        results.rows.append(replace(row, errors=errors))
                    if plan.samples and draft == max(plan.draft) and not clock.late(f"{what}, samples"):
                        with clock.told(f"{what}, samples"):
                            more = _draw(engine, sampled, plan, 1 + len(results.sampling))
                        tests = distribution.same_distribution(drawn, more)
                        results.sampling.append(Sampling(what, tests, False))
    results.rows.sort(key=lambda row: row.draft)
    return results


def _row(
    engine: Engine,
    reference: Sequence[Completion],
    ids: Sequence[Sequence[int]],
    plan: Plan,
    draft: int,
    name: str,
    vocabulary: tuple[int, ...] | None,
    drafter: Drafter | None,
) -> Row:
    before = engine.counters()
    completions, _ = engine.greedy(ids, plan.tokens)
    counters = engine.counters().since(before)
    speed = _speed(engine, ids, plan)
    size = None if vocabulary is None else len(vocabulary)
    expected = None
    if drafter is not None and vocabulary is None:
        expected = Counters()
        for prompt, tokens in zip(ids, completions, strict=True):
            expected = expected.plus(drafter.accepted((*prompt, *tokens), len(prompt), draft))
    found = compare(reference, completions)
    return Row(draft, name, size, counters, found, speed, expected=expected)


def _errors(
    float32: Float32 | None, engine: Engine, ids: Sequence[Sequence[int]], plan: Plan
) -> Errors | None:
    return None if float32 is None else float32.errors(engine.scored(ids, plan.tokens))


def _speed(engine: Engine, ids: Sequence[Sequence[int]], plan: Plan) -> float:
    """Tokens per second of the timed prompts, each run alone: all tokens over all seconds."""
    engine.greedy(ids[:1], 8)
    return plan.timed / sum(1 / engine.greedy([prompt], plan.tokens)[1] for prompt in ids[: plan.timed])


def _draw(
    engine: Engine, prompts: Sequence[Sequence[int]], plan: Plan, stream: int, temperature: float = 1.0
) -> list[distribution.Sample]:
    """Samples of all prompts. Streams have no seed in common."""
    seed = stream * _SEED_STRIDE
    share = plan.samples // len(prompts)
    return [
        (at, sample)
        for at, prompt in enumerate(prompts)
        for sample in engine.samples(
            prompt, share, SAMPLED_TOKENS, seed + at * share, temperature=temperature
        )
    ]


class _Clock:
    """Tells what takes how long, and when to stop."""

    def __init__(self, limit: float, skipped: list[str]) -> None:
        self._end = time.monotonic() + limit
        self._skipped = skipped

    def late(self, what: str) -> bool:
        """Whether it is too late to begin `what`; it is noted then."""
        if time.monotonic() < self._end:
            return False
        self._skipped.append(what)
        return True

    @contextmanager
    def told(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        print(f"{time.monotonic() - began:7.1f} s  {what}", file=sys.stderr, flush=True)
