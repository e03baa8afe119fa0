"""What a model's answers to the canary's prompts must not be. Light: no torch, no vLLM.

The criteria hold for any model with honest weights, a small random one too: such a one may repeat a token,
and may find all tokens equally likely up to rounding. What none does is to answer no numbers, to answer the
same to different texts bit by bit, to find all tokens exactly equally likely, to be sure of one and the same
token after everything, or to answer otherwise when it reads a text at once than when it wrote it.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

CERTAIN = 0.9
"""A model that gives one token this probability after every text, whatever it says, is stuck."""

APART = 0.5
"""Largest difference (total variation, 0 to 1) between the next token's distribution in decode and in
prefill. Kernels that round differently stay far below it (docs/health.md)."""


@dataclass(frozen=True)
class Step:
    """A token that was written, and the log-probabilities of the likeliest ones, its own too."""

    token: int
    logprobs: Mapping[int, float]

    @property
    def own(self) -> float:
        """That of the token; not a number where there is none."""
        return self.logprobs.get(self.token, math.nan)


Answer = Sequence[Step]


@dataclass(frozen=True)
class Answers:
    """What there is to judge.

    ``alike``: answers to texts with one last token and different tokens before; ``other``: answers to texts
    with another last token. ``again``: pairs of a step that was written and the same one after its text was
    read at once. ``ends``: tokens that end a text, which a model may well write again and again.
    ``probabilities``: whether the numbers are logarithms of probabilities (--logprobs-mode).
    """

    alike: Sequence[Answer]
    other: Sequence[Answer]
    again: Sequence[tuple[Step, Step]] = ()
    ends: Collection[int] = ()
    probabilities: bool = True

    @property
    def all(self) -> list[Answer]:
        """Every answer, of those that were read again the last step."""
        return [*self.alike, *self.other, *([second] for _, second in self.again)]


def fault(answers: Answers, tokens: int) -> str | None:
    """What is wrong with answers that should have ``tokens`` tokens each; None where nothing is."""
    written = [*answers.alike, *answers.other]
    if any(len(answer) < tokens for answer in written) or any(not answer for answer in answers.all):
        counts = ", ".join(str(len(answer)) for answer in written)
        return f"the model wrote {counts} tokens where {tokens} were asked of it"
    for answer in answers.all:
        for step in answer:
            if (wrong := not_a_number(step)) is not None:
                return f"the model's answer is not a number ({wrong})"
    if _flat(written):
        return "the model finds every token exactly as likely as any other"
    if _deaf(answers.alike):
        return "the model gives the same answer, bit by bit, to different texts"
    if answers.probabilities and (token := _stuck(written, answers.ends)) is not None:
        return f"the model writes token {token} after every text, whatever it says"
    if answers.probabilities and answers.again and _several(answers.all):
        distance = min(apart(*pair) for pair in answers.again)
        if distance > APART:
            return (
                "the model expects other tokens when it reads a text at once than when it writes it (the "
                f"probabilities differ by {distance:.2f} of 1): its kernels for decode or prefill are wrong"
            )
    return None


def not_a_number(step: Step) -> str | None:
    """The number of a step that is none, in words; None where all are good.

    A token that was forbidden has -inf; the one that was written may not.
    """
    if not math.isfinite(step.own):
        return str(step.own)
    return "nan" if any(map(math.isnan, step.logprobs.values())) else None


def apart(one: Step, two: Step) -> float:
    """The total variation of two distributions: 0 for equal ones, 1 for two that have nothing in common."""
    tokens = {*one.logprobs, *two.logprobs}
    return sum(abs(_probability(one, token) - _probability(two, token)) for token in tokens) / 2


def _probability(step: Step, token: int) -> float:
    return math.exp(min(step.logprobs.get(token, -math.inf), 0.0))


def _several(answers: Sequence[Answer]) -> bool:
    """Whether each step has the numbers of several tokens."""
    return all(len(step.logprobs) > 1 for answer in answers for step in answer)


def _flat(answers: Sequence[Answer]) -> bool:
    steps = [step for answer in answers for step in answer]
    return _several(answers) and all(len(set(step.logprobs.values())) == 1 for step in steps)


def _deaf(alike: Sequence[Answer]) -> bool:
    same = all(list(one) == list(two) for one, two in pairwise(alike))
    return len(alike) > 1 and _several(alike) and same


def _stuck(answers: Sequence[Answer], ends: Collection[int]) -> int | None:
    steps = [step for answer in answers for step in answer]
    tokens = {step.token for step in steps}
    if len(answers) < 2 or len(tokens) != 1 or not tokens.isdisjoint(ends):
        return None
    return tokens.pop() if all(math.exp(min(step.own, 0.0)) > CERTAIN for step in steps) else None
