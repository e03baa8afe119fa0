"""Compare greedy completions with the ones that were made without speculation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TOP = 20
"""How many log-probabilities the run without speculation keeps for each token."""

NEAR_TIE = 0.3
"""The largest gap of log-probabilities (nats) that rounding may turn over.

BF16 has 8 bits of significand: logits from 8 to 16 lie 1/16 apart, those from 16 to 32 lie 1/8 apart. Seen on
the demo model: gaps of at most 0.125; 3 to 12 after a wrong recurrent state (docs/speculative.md).
"""


@dataclass(frozen=True)
class Completion:
    """Greedy tokens, and for each position the likeliest tokens with their log-probabilities (natural)."""

    tokens: tuple[int, ...]
    top: tuple[dict[int, float], ...]


@dataclass(frozen=True)
class Divergence:
    """The first place where two completions differ."""

    prompt: int
    position: int
    reference: int
    """Token of the run without speculation."""
    other: int
    gap: float
    """Log-probability of `reference` less that of `other`, in the run without speculation. A lower bound when
    `other` is not among the TOP."""


@dataclass(frozen=True)
class Comparison:
    """All prompts of one run against the reference."""

    prompts: int
    tokens: int
    """Tokens compared: up to the first difference of each prompt, that one included."""
    divergences: tuple[Divergence, ...]

    def beyond(self, bound: float) -> list[Divergence]:
        """Divergences that are no near-ties."""
        return [divergence for divergence in self.divergences if divergence.gap > bound]


def compare(reference: Sequence[Completion], others: Sequence[Sequence[int]]) -> Comparison:
    """Compare token by token. Both have the same prompts in order, of equal lengths (else ValueError)."""
    divergences = []
    compared = 0
    for prompt, (expected, other) in enumerate(zip(reference, others, strict=True)):
        pairs = list(zip(expected.tokens, other, strict=True))
        position = next((at for at, (left, right) in enumerate(pairs) if left != right), None)
        compared += len(pairs) if position is None else position + 1
        if position is not None:
            divergences.append(_divergence(prompt, position, expected, other[position]))
    return Comparison(len(others), compared, tuple(divergences))


def _divergence(prompt: int, position: int, expected: Completion, other: int) -> Divergence:
    token, top = expected.tokens[position], expected.top[position]
    return Divergence(prompt, position, token, other, top[token] - top.get(other, min(top.values())))
