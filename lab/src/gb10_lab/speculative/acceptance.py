"""What vLLM's counters say about drafts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_PREFIX = "vllm:spec_decode_"


@dataclass(frozen=True)
class Counters:
    """vLLM's counters since the engine started."""

    drafts: int = 0
    """Target steps that had drafts to verify."""
    accepted: tuple[int, ...] = ()
    """Accepted drafts by position."""

    @classmethod
    def read(cls, metrics: Iterable[Any]) -> Counters:
        """Take them from `LLM.get_metrics()`; zeros when the engine does not speculate."""
        drafts = 0
        accepted: tuple[int, ...] = ()
        for metric in metrics:
            if metric.name == f"{_PREFIX}num_drafts":
                drafts = int(metric.value)
            elif metric.name == f"{_PREFIX}num_accepted_tokens_per_pos":
                accepted = tuple(int(value) for value in metric.values)
        return cls(drafts, accepted)

    def since(self, before: Counters) -> Counters:
        """What came after `before`."""
        earlier = before.accepted or (0,) * len(self.accepted)
        accepted = tuple(now - then for now, then in zip(self.accepted, earlier, strict=True))
        return Counters(self.drafts - before.drafts, accepted)

    def plus(self, more: Counters) -> Counters:
        """Both together."""
        pairs = zip(self.accepted or (0,) * len(more.accepted), more.accepted, strict=True)
        return Counters(self.drafts + more.drafts, tuple(one + other for one, other in pairs))

    @property
    def rates(self) -> list[float]:
        """The part of the drafts of each position that was accepted; only then do later ones count."""
        return [accepted / self.drafts if self.drafts else 0.0 for accepted in self.accepted]

    @property
    def length(self) -> float:
        """Mean tokens for a target step: the accepted drafts and the target's own one."""
        return 1.0 + sum(self.rates)
