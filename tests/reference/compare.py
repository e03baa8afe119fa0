"""Compare what an engine served with the reference, position by position."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from reference.activations import Rounding
from reference.model import Model

MAX_FLIPS = 4
"""Close calls that may be turned round to explain one sequence."""


@dataclass(frozen=True)
class Served:
    """One prompt and what the engine made of it. All lists hold token ids or natural-log probabilities."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    prompt_logprobs: list[float]
    prompt_top: list[int]

    @property
    def read(self) -> list[int]:
        """The tokens that were read to make all choices: all but the last."""
        return self.prompt + self.tokens[:-1]

    @property
    def followers(self) -> list[int]:
        """The token that follows each one that was read."""
        return self.prompt[1:] + self.tokens

    @property
    def follower_logprobs(self) -> list[float]:
        """The log probability the engine gave to each follower."""
        return self.prompt_logprobs + self.logprobs

    @property
    def choices(self) -> list[int]:
        """The token the engine found most probable after each one that was read."""
        return self.prompt_top + self.tokens


@dataclass
class Comparison:
    """Counts over all positions of all sequences."""

    greedy_same: int = 0
    greedy_positions: int = 0
    top_same: int = 0
    top_positions: int = 0
    differences: list[float] = field(default_factory=list)
    """|log probability served - reference| of each follower"""
    gaps: list[float] = field(default_factory=list)
    """Where the choice differs: how much less probable (log) the reference finds the engine's choice."""
    flips: list[Rounding] = field(default_factory=list)
    """Close calls of activation rounding that had to be turned round to reach these numbers."""

    def __str__(self) -> str:
        spread = torch.tensor(self.differences)
        gaps = ", ".join(f"{gap:.1e}" for gap in sorted(self.gaps)[-5:]) or "none"
        flips = "".join(f"\n  rounded the other way: {flip}" for flip in self.flips)
        return (
            f"greedy {self.greedy_same}/{self.greedy_positions}, top-1 {self.top_same}/{self.top_positions}, "
            f"|dlogprob| max {spread.max():.1e} mean {spread.mean():.1e} median {spread.median():.1e}, "
            f"largest gaps where the choice differs: {gaps}{flips}"
        )

    def beyond(self, tolerance: float) -> int:
        """Count positions whose log probabilities differ by more than `tolerance`."""
        return sum(difference > tolerance for difference in self.differences)

    def mean_difference(self) -> float:
        """Average the log probability differences over all positions."""
        return sum(self.differences) / len(self.differences)

    def disagreements(self, tie: float) -> int:
        """Count positions with another choice where the reference sees a gap larger than `tie`."""
        return sum(gap > tie for gap in self.gaps)

    def add(self, logprobs: torch.Tensor, served: Served) -> None:
        """Add one sequence. logprobs: the reference's, float32 [T, vocabulary]."""
        self.differences += _differences(logprobs, served).tolist()
        gaps = logprobs.amax(-1) - logprobs.gather(1, torch.tensor(served.choices).unsqueeze(1)).squeeze(1)
        same = gaps == 0
        self.gaps += gaps[~same].tolist()
        self.top_same += int(same.sum())
        self.top_positions += len(same)
        self.greedy_same += int(same[len(served.prompt_top) :].sum())
        self.greedy_positions += len(served.tokens)


def compare(model: Model, served: Sequence[Served], *, tolerance: float | None = None) -> Comparison:
    """Feed prompt and served tokens to the reference and compare each next-token choice.

    Feeding the served tokens makes each position independent of the ones before. If every choice is the same,
    then so is the text that the reference itself would write greedily, token for token.

    With a `tolerance`, a model that quantises activations may turn close calls of its rounding round, where
    that makes a log probability agree that did not. The comparison lists them. It forgives nothing else.
    """
    result = Comparison()
    for one in served:
        logprobs = model.logits(one.read).log_softmax(-1)
        if tolerance is not None:
            logprobs, flips = _explain(model, one, logprobs, tolerance)
            result.flips += flips
        result.add(logprobs, one)
    return result


def _differences(logprobs: torch.Tensor, served: Served) -> torch.Tensor:
    given = torch.tensor(served.follower_logprobs)
    return (logprobs.gather(1, torch.tensor(served.followers).unsqueeze(1)).squeeze(1) - given).abs()


def _first_beyond(logprobs: torch.Tensor, served: Served, tolerance: float) -> int:
    """Give the first position that does not agree, or the number of positions."""
    beyond = (_differences(logprobs, served) > tolerance).nonzero()
    return int(beyond[0]) if len(beyond) else len(logprobs)


def _explain(
    model: Model, served: Served, logprobs: torch.Tensor, tolerance: float
) -> tuple[torch.Tensor, list[Rounding]]:
    """Look for the close calls that the engine rounded the other way, from the first difference on."""
    flips: list[Rounding] = []
    while (place := _first_beyond(logprobs, served, tolerance)) < len(logprobs) and len(flips) < MAX_FLIPS:
        model.logits(served.read, frozenset(flips))
        candidates = [call for call in model.close_calls() if call.token <= place and call not in flips]
        for call in candidates:
            attempt = model.logits(served.read, frozenset([*flips, call])).log_softmax(-1)
            if _first_beyond(attempt, served, tolerance) > place:
                logprobs = attempt
                flips.append(call)
                break
        else:
            break
    return logprobs, flips
