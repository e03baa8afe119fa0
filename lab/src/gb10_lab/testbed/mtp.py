"""The multi-token prediction head, unrolled over several draft steps as vLLM runs it.

For the anchor at position i the first step takes the main model's hidden state of i and token i+1, and
predicts token i+2. Each later step takes the output of the step before and one more token, one position
further on. Its attention sees the first-step keys of all positions up to i, which come from the main model's
hidden states, and the keys of its own anchor's later steps.
"""

import torch
from torch import Tensor
from torch.nn import functional

from gb10_lab.testbed.model import Model, Site, linear, rotary_tables

ALIGNMENT = 16
"""The number of anchors is a multiple of this: fused attention wants its masks so."""


def anchors(length: int, steps: int) -> int:
    """Give the number of anchors of a sequence: each has the tokens that `steps` steps need."""
    return max(0, (length - steps) // ALIGNMENT * ALIGNMENT)


def unroll(
    model: Model, tokens: Tensor, hidden: Tensor, steps: int, site: Site | None = None
) -> list[Tensor]:
    """Run the head for `steps` steps from every anchor, with the tokens that the text really has.

    `tokens` is int64 [B, T], `hidden` the main model's [B, T, hidden] for them. Step k (from 1) of anchor i
    predicts token i+k+1. Returns one [B, A, hidden] after the head's norm for each step, ready for
    `Model.logits`; A is `anchors(T, steps)`.
    """
    head = model.draft_head()
    layer, dtype, count = head.layer, model.dtype, anchors(tokens.shape[1], steps)
    cos, sin = rotary_tables(model.arch, count + steps, tokens.device)
    mask = _mask(count, steps, tokens.device)
    keys: list[Tensor] = []
    values: list[Tensor] = []
    states: list[Tensor] = []
    state = hidden[:, :count]
    for step in range(steps):
        embedded = functional.embedding(
            tokens[:, step + 1 : step + 1 + count], model.model.embed_tokens.weight
        )
        both = (head.pre_fc_norm_embedding(embedded, dtype), head.pre_fc_norm_hidden(state, dtype))
        x = linear(torch.cat(both, dim=-1), head.fc.weight).to(embedded.dtype)
        attention = layer.self_attn
        query, key, value, gate = attention.project(
            layer.input_layernorm(x, dtype), cos[step : step + count], sin[step : step + count], site
        )
        keys.append(key)
        values.append(value)
        out = functional.scaled_dot_product_attention(
            query, torch.cat(keys, dim=2), torch.cat(values, dim=2), attn_mask=mask[:, : (step + 1) * count]
        )
        x, _ = layer.mix(x + attention.finish(out, gate, site), dtype, site)
        state = head.norm(x, dtype)
        states.append(state)
    return states


def _mask(count: int, steps: int, device: torch.device) -> Tensor:
    """What anchor i sees: first-step keys up to i, and of each later step its own. Bool [A, steps * A]."""
    own = torch.eye(count, dtype=torch.bool, device=device)
    earlier = torch.ones(count, count, dtype=torch.bool, device=device).tril()
    return torch.cat([earlier] + [own] * (steps - 1), dim=1)
