"""Distinct experts: what was counted, and what must hold for any model."""

from itertools import pairwise

import pytest

from gb10.predict.routing import distinct, independent

SHAPES = [(512, 10), (256, 8), (128, 8), (64, 6), (32, 4), (16, 4), (16, 2), (8, 2), (4, 2), (4, 4), (1, 1)]


@pytest.mark.parametrize(("tokens", "counted"), [(1, 10), (4, 26.6), (8, 47.3), (16, 82.5)])
def test_what_was_counted(tokens: int, counted: float) -> None:
    assert distinct(512, 10, tokens) == pytest.approx(counted)


@pytest.mark.parametrize(("experts", "chosen"), SHAPES)
def test_more_tokens_touch_no_fewer_experts(experts: int, chosen: int) -> None:
    found = [distinct(experts, chosen, tokens) for tokens in range(1, 200)]
    assert found[0] == pytest.approx(chosen)
    assert all(before <= after <= experts for before, after in pairwise(found))
    assert all(
        one <= independent(experts, chosen, tokens) + 1e-9 for tokens, one in enumerate(found, start=1)
    )
    assert found[-1] > 0.85 * experts


def test_a_dense_model_has_none() -> None:
    assert distinct(0, 0, 4) == 0
