"""How the answers of two engines are compared (tests/reference/engines.py): by tests that need a GPU, too."""

import math
from typing import Any

import pytest
from reference.engines import differences, moved_on


def answer(tokens: list[int], sure: float = 0.5) -> dict[str, Any]:
    prompt = {
        "tokens": tokens,
        "logprobs": [math.log(sure)] * len(tokens),
        "prompt_logprobs": [-1.0, -float(len(tokens))],
    }
    return {"prompts": [prompt]}


def test_a_near_tie_may_fall_the_other_way() -> None:
    assert moved_on(answer([1, 2, 3]), answer([1, 2, 3], 0.99)) == 0
    assert moved_on(answer([1, 9, 3], 0.99), answer([1, 2, 3])) == 1


def test_what_the_other_engine_was_sure_of_must_not_change() -> None:
    with pytest.raises(AssertionError, match=r"prompt 0, new token 1: no near-tie \(0\.80\)"):
        moved_on(answer([1, 9, 3]), answer([1, 2, 3], 0.8))


def test_answers_of_another_length_do_not_count_as_alike() -> None:
    with pytest.raises(ValueError):
        moved_on(answer([1, 2]), answer([1, 2, 3]))
    assert differences(answer([1, 2]), answer([1, 2, 3])) == [0, 1]
