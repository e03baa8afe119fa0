"""From times and bytes to percentiles, rates, floors and predictions. Plain arithmetic, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

GB10_READ_GBPS = 233.0
"""What a saturating read reaches on a GB10 (85 % of 273 GB/s)."""

GB10_LAUNCH_US = 2.0
"""Assumed time of one kernel node in a CUDA graph on a GB10."""


@dataclass(frozen=True)
class Spread:
    """Times in microseconds."""

    median: float
    min: float
    p10: float
    p90: float
    samples: int

    @property
    def relative(self) -> float:
        """Width of the middle 80 % over the median."""
        return (self.p90 - self.p10) / self.median


def percentile(values: Sequence[float], fraction: float) -> float:
    """The ``fraction`` quantile (0 to 1), linear between neighbours. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values to take a percentile of")
    if not 0 <= fraction <= 1:
        raise ValueError(f"a fraction between 0 and 1 is needed, got {fraction}")
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: Sequence[float]) -> Spread:
    """Median with its surroundings."""
    return Spread(
        percentile(values, 0.5), min(values), percentile(values, 0.1), percentile(values, 0.9), len(values)
    )


def agree(first: Spread, second: Spread) -> bool:
    """Whether two timings of the same version differ by no more than their own spread, or 2 %."""
    allowed = max(first.relative, second.relative, 0.02)
    return abs(first.median - second.median) <= allowed * min(first.median, second.median)


def gbps(moved: float, microseconds: float) -> float:
    """Bytes and microseconds to GB/s (10^9 bytes)."""
    return moved / microseconds / 1e3


def floor_us(moved: float, read_gbps: float, launches: int, launch_us: float) -> float:
    """The least time: all bytes at the read bandwidth, and the launches."""
    return moved / read_gbps / 1e3 + launches * launch_us


def predict_gb10_us(moved: float, fraction: float, launches: int) -> float:
    """What a GB10 should take: bytes at ``fraction`` of its read bandwidth, and the launches."""
    if not fraction > 0:
        raise ValueError(f"a positive fraction is needed, got {fraction}")
    return floor_us(moved, min(fraction, 1.0) * GB10_READ_GBPS, launches, GB10_LAUNCH_US)


def rotation(bytes_each: int, cache_bytes: int) -> int:
    """How many copies make every pass a cold one: together more than four times the L2 cache."""
    return 4 * cache_bytes // bytes_each + 1
