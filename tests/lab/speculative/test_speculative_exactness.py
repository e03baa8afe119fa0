"""Log-probabilities against float32."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_model import make_model, make_tokens

from gb10_lab.speculative import report
from gb10_lab.speculative.acceptance import Counters
from gb10_lab.speculative.equality import Comparison
from gb10_lab.speculative.exactness import Drafter, Error, Errors, Float32, Scored
from gb10_lab.speculative.measure import Results, Row
from gb10_lab.testbed import checkpoint, mtp

PROMPT = 7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = make_model(dtype=torch.float32)
    checkpoint.round_to_bf16(model)
    checkpoint.save(model, tmp_path)
    return tmp_path


def test_the_model_itself_has_no_error_and_another_has_its_own(folder: Path) -> None:
    ids = tuple(make_tokens(1, 20)[0].tolist())
    float32 = Float32(folder)
    own = float32.logprobs(ids)
    assert own.shape == (19,)
    # The same by definition: the log-probability of each token after those before it.
    model = checkpoint.load(folder)
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        logits = model.logits(model(tokens[:, :11]))
    expected = logits[0, -1].double().log_softmax(-1)[ids[11]]
    assert float(own[10]) == pytest.approx(float(expected), abs=1e-5)
    shifted = own.clone()
    shifted[PROMPT - 1 :] += 0.25
    errors = float32.errors([Scored(ids, PROMPT, tuple(shifted.tolist()))])
    assert errors.prompts == Error(PROMPT - 1, 0.0, 0.0, 0.0, 0.0)
    assert errors.completions.tokens == 20 - PROMPT
    for value in (errors.completions.mean, errors.completions.rms, errors.completions.largest):
        assert value == pytest.approx(0.25)


def test_error_of_differences() -> None:
    error = Error.of(torch.tensor([0.3, -0.4, 0.0, 0.0]))
    assert (error.tokens, error.mean, error.rms, error.largest) == pytest.approx((4, -0.025, 0.25, 0.4))


def test_the_table_has_both_kinds_of_tokens() -> None:
    errors = Errors(Error(12345, -0.001, 0.02, 0.1, 1.25), Error(3072, 0.0005, 0.03, 0.2, 0.5))
    row = Row(0, "full", None, Counters(), Comparison(32, 3072, ()), 123.4, errors)
    text = report.table(Results([row], []), 0.3)
    assert "prompts        12345   -1.00   20.00    100.0     1250" in text
    assert "completions     3072   +0.50   30.00    200.0      500" in text
    assert max(len(line) for line in text.split("\n")) <= 80
    assert (
        report.content(Results([row], []), 0.3, [])["rows"][0]["float32_errors_nats"]["prompts"]["rms"]
        == 0.02
    )


@torch.inference_mode()
def test_drafts_of_a_text_are_those_of_its_prefixes(folder: Path) -> None:
    model = checkpoint.load(folder)

    def guess(ids: list[int], anchor: int, step: int) -> int:
        """The token after ``ids[: anchor + step + 1]``, as a draft of that step; nothing later is known."""
        known = torch.tensor([[*ids[: anchor + step + 1], *[0] * 32]])
        states = mtp.unroll(model, known, model(known), step)
        return int(model.logits(states[step - 1])[0, anchor].argmax())

    ids, anchor, accepted, steps = make_tokens(1, PROMPT + 1)[0].tolist(), PROMPT - 1, [0, 0], 0
    for took in (2, 0, 1, 2, 1, 0, 0, 2, 1):
        for step in range(took):
            ids.append(guess(ids, anchor, step + 1))
            accepted[step] += 1
        # The target's own token, which is not what would be drafted.
        ids.append((guess(ids, anchor, took + 1) + 1) % 300 if took < 2 else 7)
        steps, anchor = steps + 1, anchor + took + 1
    # The last step must have all the tokens that it may reach; it accepts none.
    end = [(guess(ids, anchor, 1) + 1) % 300, 7]
    found = Drafter(folder).accepted([*ids, *end], PROMPT, 2)
    assert found == Counters(steps + 1, tuple(accepted))
    assert found.accepted == (6, 3)
    assert Counters(3, (2, 1)).plus(Counters(1, (1, 0))) == Counters(4, (3, 1))
    assert Counters().plus(Counters(1, (1, 0))) == Counters(1, (1, 0))


def test_a_length_that_float32_does_not_accept_is_told() -> None:
    right = Row(2, "full", None, Counters(1000, (800, 650)), Comparison(1, 9, ()), 1.0)
    near, far = Counters(1000, (790, 640)), Counters(1000, (780, 620))
    for expected, lines in ((near, []), (far, ["2 drafts: accepted length 2.450, float32 2.400"])):
        results = Results([replace(right, expected=expected)], [])
        assert report.inexact_lengths(results) == lines
        assert f"length {expected.length:.3f}" in report.table(results, 0.3)
