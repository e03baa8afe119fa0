"""What a model's first tokens must not be, and which odd ones are honest."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest

from gb10.vllm_plugin.server import judge
from gb10.vllm_plugin.server.judge import Answers, Step, fault

Model = Callable[[list[int], bool], dict[int, float]]
"""The log-probabilities after a text; the second argument says that its last token was written just now."""

TOKENS = 4
VOCABULARY = 24
TEXTS = ([1, 2, 3, 20, 21], [7, 8, 9, 20, 21], [4, 5, 6, 11, 12])


def softmax(logits: list[float]) -> dict[int, float]:
    total = math.log(sum(map(math.exp, logits)))
    return {token: value - total for token, value in enumerate(logits)}


def noise(*numbers: int) -> list[float]:
    """Logits between -1 and 1 that anything before them changes."""
    seed = 7
    for number in numbers:
        seed = (seed * 31 + number * 17 + 5) % 65521
    return [((seed * (2 * token + 3)) % 1999) / 1000 - 1 for token in range(VOCABULARY)]


def honest(text: list[int], _: bool) -> dict[int, float]:
    return softmax([4 * value for value in noise(*text)])


def small(text: list[int], _: bool) -> dict[int, float]:
    """Random weights: all tokens nearly as likely."""
    return softmax([value / 1000 for value in noise(*text)])


def parrot(text: list[int], _: bool) -> dict[int, float]:
    """Random weights and tied embeddings: it says the last token for ever, and is sure of it."""
    return softmax([20.0 * (token == text[-1]) + value for token, value in enumerate(noise(*text))])


def blank(text: list[int], _: bool) -> dict[int, float]:
    """It writes one token most of the time, as a small model may write blanks."""
    return softmax([5.0 * (token == 2) + value for token, value in enumerate(noise(*text))])


def done(text: list[int], _: bool) -> dict[int, float]:
    """It ends every text, and is sure of it."""
    return softmax([20.0 * (token == 0) + value for token, value in enumerate(noise(*text))])


def rounded(text: list[int], written: bool) -> dict[int, float]:
    """Another kernel, another rounding."""
    return softmax([4 * value * (1.03 if written else 1) for value in noise(*text)])


def answers(model: Model, top: int = 20) -> Answers:
    """Greedy answers to the texts, as the canary asks for them."""

    def step(text: list[int], written: bool) -> Step:
        likely = sorted(model(text, written).items(), key=lambda one: -one[1])[:top]
        return Step(likely[0][0], dict(likely))

    written = []
    for text in TEXTS:
        made: list[Step] = []
        for place in range(TOKENS):
            made.append(step([*text, *(one.token for one in made)], place > 0))
        written.append(made)
    again = [
        (written[place][-1], step([*TEXTS[place], *(one.token for one in written[place][:-1])], False))
        for place in (0, 2)
    ]
    return Answers(written[:2], written[2:], again, ends={0})


@pytest.mark.parametrize("model", [honest, small, parrot, blank, done, rounded])
@pytest.mark.parametrize("top", [20, 2, 1])
def test_honest_models_pass(model: Model, top: int) -> None:
    assert fault(answers(model, top), TOKENS) is None


def flat(_text: list[int], _: bool) -> dict[int, float]:
    return softmax([0.0] * VOCABULARY)


def deaf(text: list[int], _: bool) -> dict[int, float]:
    """Attention that brings nothing: the last token and the position decide alone."""
    return softmax(noise(text[-1], len(text)))


def stuck(text: list[int], _: bool) -> dict[int, float]:
    """A row of the head that outweighs all others."""
    return softmax([20.0 * (token == 3) + value for token, value in enumerate(noise(*text))])


def lost(text: list[int], written: bool) -> dict[int, float]:
    """A state that decode reads from the wrong place."""
    return softmax([9 * value for value in noise(*text, int(written))])


def broken(text: list[int], written: bool) -> dict[int, float]:
    return dict.fromkeys(range(VOCABULARY), math.nan) if written else honest(text, written)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (flat, "finds every token exactly as likely as any other"),
        (deaf, "gives the same answer, bit by bit, to different texts"),
        (stuck, "writes token 3 after every text, whatever it says"),
        (lost, r"expects other tokens when it reads a text at once .* differ by 0\.\d\d of 1"),
        (broken, r"answer is not a number \(nan\)"),
    ],
)
def test_broken_models_do_not(model: Model, said: str) -> None:
    found = fault(answers(model), TOKENS)
    assert found is not None
    assert re.search(said, found), found


def test_an_answer_that_is_short() -> None:
    good = answers(honest)
    found = fault(Answers(good.alike, [good.other[0][:1]]), TOKENS)
    assert found == "the model wrote 4, 4, 1 tokens where 4 were asked of it"
    assert fault(Answers([[], []], [[]]), TOKENS) is not None


@pytest.mark.parametrize(
    ("numbers", "wrong"),
    [
        ({5: -0.5, 6: -math.inf}, None),
        ({5: -math.inf, 6: -1.0}, "-inf"),
        ({5: math.inf}, "inf"),
        ({5: -0.5, 6: math.nan}, "nan"),
        ({6: -0.5}, "nan"),
    ],
)
def test_numbers(numbers: dict[int, float], wrong: str | None) -> None:
    """A token that was forbidden may have -inf; the one that was written may not."""
    assert judge.not_a_number(Step(5, numbers)) == wrong


def test_logits_are_not_taken_for_probabilities() -> None:
    """With --logprobs-mode raw_logits a large number says nothing of certainty."""
    step = Step(3, {3: 30.0, 4: 1.0})
    other = Step(3, {3: 30.0, 4: 2.0})
    given = Answers([[step] * 4, [other] * 4], [[step] * 4], [(step, Step(4, {4: 1.0}))])
    assert fault(given, TOKENS) is not None
    assert fault(Answers(given.alike, given.other, given.again, probabilities=False), TOKENS) is None


def test_apart() -> None:
    one, two = Step(1, {1: math.log(0.75), 2: math.log(0.25)}), Step(2, {2: math.log(0.5), 3: math.log(0.5)})
    assert judge.apart(one, one) == 0
    assert judge.apart(one, two) == pytest.approx(0.75)
    assert judge.apart(one, Step(9, {9: 0.0})) == pytest.approx(1)
