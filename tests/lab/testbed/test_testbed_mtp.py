"""The unrolled draft head against one anchor at a time, with a key cache as an engine keeps it."""

import pytest
import torch
from gb10_lab.testbed.model import Model, linear, rotary_tables
from gb10_lab.testbed.mtp import anchors, unroll
from small_model import make_model, make_tokens
from torch import Tensor

STEPS = 3


def draft_from(model: Model, tokens: Tensor, hidden: Tensor, anchor: int) -> list[Tensor]:
    """Run the head as an engine does: prefill up to `anchor`, then step by step. One sequence, [T]."""
    head = model.draft_head()
    attention = head.layer.self_attn
    cos, sin = rotary_tables(model.arch, len(tokens), tokens.device)
    cache: list[tuple[Tensor, Tensor]] = []
    outputs = []

    def run(token: Tensor, state: Tensor, position: int) -> Tensor:
        embedded = model.model.embed_tokens.weight[token]
        both = (
            head.pre_fc_norm_embedding(embedded, model.dtype),
            head.pre_fc_norm_hidden(state, model.dtype),
        )
        x = linear(torch.cat(both), head.fc.weight)[None, None]
        query, key, value, gate = attention.project(
            head.layer.input_layernorm(x, model.dtype),
            cos[position : position + 1],
            sin[position : position + 1],
            None,
        )
        cache.append((key, value))
        keys, values = (torch.cat([entry[part] for entry in cache], dim=2) for part in (0, 1))
        scores = (query @ keys.transpose(-1, -2)) * query.shape[-1] ** -0.5
        x = x + attention.finish(scores.softmax(-1) @ values, gate, None)
        last: torch.Tensor = head.norm(head.layer.mix(x, model.dtype, None)[0], model.dtype)[0, 0]
        return last

    for position in range(anchor + 1):
        state = run(tokens[position + 1], hidden[position], position)
    outputs.append(state)
    for step in range(1, STEPS):
        state = run(tokens[anchor + step + 1], state, anchor + step)
        outputs.append(state)
    return outputs


@pytest.fixture(scope="module")
def case() -> tuple[Model, Tensor, Tensor]:
    model, tokens = make_model(), make_tokens(2, 40)
    with torch.no_grad():
        return model, tokens, model(tokens)


@pytest.mark.parametrize("anchor", [0, 1, 17, 31])
def test_unrolled_steps_are_an_engines_steps(case: tuple[Model, Tensor, Tensor], anchor: int) -> None:
    model, tokens, hidden = case
    with torch.no_grad():
        states = unroll(model, tokens, hidden, STEPS)
        for row in range(2):
            for step, expected in enumerate(draft_from(model, tokens[row], hidden[row], anchor)):
                torch.testing.assert_close(states[step][row, anchor], expected)


def test_a_step_reads_its_own_tokens_and_no_later_ones(case: tuple[Model, Tensor, Tensor]) -> None:
    """Step k of anchor i (k from 1) reads tokens up to i+k: so does the control one step on."""
    model, tokens, hidden = case
    changed = tokens.clone()
    changed[:, 20] = (changed[:, 20] + 5) % model.arch.vocabulary
    with torch.no_grad():
        before, after = (unroll(model, some, hidden, STEPS) for some in (tokens, changed))
    for step in range(STEPS):
        difference = (before[step] - after[step]).abs().amax((0, 2))
        first = 20 - (step + 1)
        assert difference[:first].max() < 1e-12
        assert difference[first] > 1e-6


def test_number_of_anchors() -> None:
    assert anchors(40, 3) == 32
    assert anchors(35, 3) == 32
    assert anchors(34, 3) == 16
    assert anchors(3, 4) == 0
