"""What a run of one configuration measured, and the arithmetic on it. No torch, no vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from gb10_lab.kernel_bench.figures import GB10_LAUNCH_US, GB10_READ_GBPS, predict_gb10_us

GB10_FRACTION = 0.94
"""Share of a GB10's read bandwidth that predictions take: what the GEMVs reach on an H200 when streaming."""


@dataclass(frozen=True)
class Sample:
    """Median, smallest and largest of repeated measurements, in the unit that the field's name says."""

    median: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample:
        """Raises ValueError for no values."""
        if not values:
            raise ValueError("nothing was measured")
        return cls(median(values), min(values), max(values), len(values))


def decode_rate(batch: int, tokens: tuple[int, int], seconds: tuple[float, float]) -> float:
    """Tokens a second from two generations of one prompt: prefill and the request's start cancel.

    Raises ValueError when the longer one took no longer, which is noise and no rate.
    """
    more, longer = tokens[1] - tokens[0], seconds[1] - seconds[0]
    if more <= 0 or longer <= 0:
        raise ValueError(f"{tokens[1]} tokens in {seconds[1]:.4f} s, {tokens[0]} in {seconds[0]:.4f} s")
    return batch * more / longer


def predicted_gb10_ms(weights: float, state: float, launches: float) -> float:
    """A decode step on a GB10 from bytes and launches. Predicted: nobody here has one."""
    return predict_gb10_us(weights + state, GB10_FRACTION, round(launches)) / 1e3


PREDICTION = (
    f"GB10: predicted, (weights + state) / ({GB10_FRACTION:.2f} x {GB10_READ_GBPS:.0f} GB/s) + "
    f"{GB10_LAUNCH_US:.0f} us a launch"
)
