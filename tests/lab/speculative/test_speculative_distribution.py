"""The test of distributions: right about equal ones, awake to different ones."""

import random

import pytest

from gb10_lab.speculative.distribution import THRESHOLD, Sample, corrected, homogeneity, same_distribution

WEIGHTS = [40, 20, 10, 8, 6, 5, 4, 3, 2, 1, 0.5, 0.3, 0.1, 0.1]


def _draw(count: int, seed: int, power: float = 1.0) -> list[Sample]:
    """Pairs whose second number depends on the first."""
    source = random.Random(seed)
    weights = [weight**power for weight in WEIGHTS]
    firsts = source.choices(range(len(weights)), weights, k=count)
    return [(0, (first, source.choices(range(len(weights)), weights)[0] ^ (first & 1))) for first in firsts]


def test_statistic_by_hand() -> None:
    """30 of 50 against 20 of 50: chi-square 4, p 0.0455 for one degree of freedom."""
    test = homogeneity(["a"] * 30 + ["b"] * 20, ["a"] * 20 + ["b"] * 30)
    assert test.cells == 2
    assert test.statistic == pytest.approx(4.0)
    assert test.p_value == pytest.approx(0.0455, abs=1e-4)


def test_samples_of_different_size() -> None:
    assert homogeneity(["a"] * 60 + ["b"] * 40, ["a"] * 30 + ["b"] * 20).statistic == pytest.approx(0.0)


def test_rare_values_are_pooled() -> None:
    left = ["a"] * 50 + [f"x{number}" for number in range(50)]
    right = ["a"] * 50 + [f"y{number}" for number in range(50)]
    assert homogeneity(left, right).cells == 2


def test_a_small_rest_joins_a_cell() -> None:
    test = homogeneity(["a"] * 40 + ["b"] * 20 + ["x"], ["a"] * 40 + ["b"] * 20 + ["y"])
    assert test.cells == 2
    assert test.statistic == pytest.approx(0.0)


def test_nothing_to_compare_is_no_difference() -> None:
    assert homogeneity(["a"] * 9, ["a"] * 9).p_value == 1.0


def test_p_values_of_equal_distributions_are_uniform() -> None:
    values = [homogeneity(_draw(500, 2 * seed), _draw(500, 2 * seed + 1)).p_value for seed in range(300)]
    for level in (0.1, 0.25, 0.5, 0.75):
        assert sum(value < level for value in values) / len(values) == pytest.approx(level, abs=0.09)


def test_right_samplers_pass_and_wrong_ones_do_not() -> None:
    right = [corrected(same_distribution(_draw(2000, seed), _draw(2000, seed + 99))) for seed in range(20)]
    wrong = [
        corrected(same_distribution(_draw(2000, seed), _draw(2000, seed + 99, 1.3))) for seed in range(20)
    ]
    assert min(right) > THRESHOLD
    assert max(wrong) < THRESHOLD


def test_only_the_joint_test_sees_a_lost_dependence() -> None:
    dependent = _draw(4000, 1)
    seconds = [second for _, (_, second) in _draw(4000, 2)]
    random.Random(3).shuffle(seconds)
    firsts = [first for _, (first, _) in _draw(4000, 2)]
    independent = [(0, pair) for pair in zip(firsts, seconds, strict=True)]
    tests = same_distribution(dependent, independent)
    assert list(tests) == ["token 1", "token 2", "joint"]
    assert tests["joint"].p_value < 1e-6
    assert min(tests["token 1"].p_value, tests["token 2"].p_value) > 1e-3


def test_prompts_are_kept_apart() -> None:
    """Two prompts whose samples are exchanged: all samples together look the same."""
    left = [(0, (1, 2))] * 50 + [(1, (3, 4))] * 50
    right = [(1, (1, 2))] * 50 + [(0, (3, 4))] * 50
    tests = same_distribution(left, right)
    assert max(test.p_value for test in tests.values()) < 1e-6
