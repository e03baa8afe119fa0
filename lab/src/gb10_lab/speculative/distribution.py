"""Do two samplers draw from the same distribution? Pearson's chi-square test of homogeneity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

LEAST_EXPECTED = 5.0
"""Cells that expect fewer samples are pooled: the usual bound for Pearson's approximation."""

THRESHOLD = 1e-3
"""Below this p-value two samplers count as different."""


Sample = tuple[int, tuple[int, ...]]
"""The number of a prompt, and the tokens that were drawn after it."""


@dataclass(frozen=True)
class Test:
    """The outcome of one test."""

    statistic: float
    cells: int
    p_value: float


def homogeneity(left: Sequence[Hashable], right: Sequence[Hashable]) -> Test:
    """Test that two independent samples have one distribution.

    Rare values share one cell; when even that one is too small it joins the smallest other cell. With
    fewer than two cells the samples say nothing, and p is 1.
    """
    counts = Counter(left), Counter(right)
    total = len(left) + len(right)
    smaller = min(len(left), len(right)) / total
    both = counts[0] + counts[1]
    cells = [
        (counts[0][value], counts[1][value])
        for value, count in both.items()
        if count * smaller >= LEAST_EXPECTED
    ]
    rest = tuple(len(side) - sum(cell[at] for cell in cells) for at, side in enumerate((left, right)))
    if sum(rest) * smaller < LEAST_EXPECTED and cells:
        smallest = min(range(len(cells)), key=lambda at: sum(cells[at]))
        cells[smallest] = (cells[smallest][0] + rest[0], cells[smallest][1] + rest[1])
    elif sum(rest):
        cells.append((rest[0], rest[1]))
    if len(cells) < 2:
        return Test(0.0, len(cells), 1.0)
    statistic = 0.0
    for cell in cells:
        for observed, side in zip(cell, (left, right), strict=True):
            expected = sum(cell) * len(side) / total
            statistic += (observed - expected) ** 2 / expected
    half = torch.tensor([len(cells) - 1, statistic], dtype=torch.float64) / 2
    return Test(statistic, len(cells), float(torch.special.gammaincc(half[0], half[1])))


def same_distribution(left: Sequence[Sample], right: Sequence[Sample]) -> dict[str, Test]:
    """Test first tokens alone, second ones alone, ..., and all jointly, each by prompt. Of one length all.

    A joint test sees dependences, a test of one position sees more where the joint one has only rare cells.
    """
    tests = {}
    for at in range(len(left[0][1])):
        one = [[(prompt, tokens[at]) for prompt, tokens in samples] for samples in (left, right)]
        tests[f"token {at + 1}"] = homogeneity(*one)
    return tests | {"joint": homogeneity(left, right)}


def corrected(tests: dict[str, Test]) -> float:
    """The smallest p-value, times the number of tests (Bonferroni); at most 1."""
    return min(1.0, len(tests) * min(test.p_value for test in tests.values()))
