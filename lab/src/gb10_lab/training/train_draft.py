"""Train the draft (MTP) head on the frozen model, unrolled over the draft steps of inference."""

from typing import Any

import torch
from torch import Tensor

from gb10_lab.testbed.model import Model, linear
from gb10_lab.testbed.mtp import anchors, unroll
from gb10_lab.training.loop import Plan, Progress, optimise

WEIGHTS = (1.0, 0.8, 0.6, 0.5)
"""Weight of each draft step in the loss."""
STEPS = len(WEIGHTS)
_EVALUATION_BATCH = 4


def train(model: Model, plan: Plan, batches: Any, *, compiled: bool) -> Progress:
    """Train the head in place on batches of int64 [batch, length + 1]; the main model is not changed.

    The loss is the divergence of the head's next-token distribution from the main model's, at every step.
    """
    loss = divergence
    head = model.draft_head()
    if compiled:
        for layer in model.model.layers:
            layer.compile(dynamic=False)
        head.layer.mlp.compile(dynamic=False)
        loss = torch.compile(divergence, dynamic=False)
    torch.set_float32_matmul_precision("high")
    model.compute = torch.bfloat16
    model.requires_grad_(False)
    head.requires_grad_(True)

    def loss_of(window: Tensor) -> tuple[Tensor, Tensor]:
        tokens = window[:, :-1]
        with torch.no_grad():
            hidden = model(tokens)
            teacher = model.logits(hidden)
        states = unroll(model, tokens, hidden, STEPS)
        found = [
            weight * loss(state, model.lm_head.weight, teacher[:, step : step + state.shape[1]])
            for step, (state, weight) in enumerate(zip(states, WEIGHTS, strict=True), start=1)
        ]
        mean = torch.stack(found).sum() / sum(WEIGHTS)
        return mean, mean

    named = [(f"mtp.{name}", value) for name, value in head.named_parameters()]
    progress = optimise(plan, named, model.arch.head_dim, batches, loss_of, "draft")
    model.requires_grad_(True)
    model.compute = None
    return progress


def divergence(state: Tensor, head: Tensor, teacher: Tensor) -> Tensor:
    """Mean divergence in nats. `state` [B, A, hidden], `teacher` logits [B, A, vocabulary]."""
    wanted = teacher.to(head.dtype).log_softmax(-1)
    given = linear(state, head).to(head.dtype).log_softmax(-1)
    return (wanted.exp() * (wanted - given)).sum(-1).mean()


def acceptance(model: Model, sets: dict[str, Tensor]) -> dict[str, Any]:
    """Give how often each draft position is accepted when the main model decodes greedily.

    A draft token counts as accepted when it and all before it are the main model's first choices, given the
    text so far. `sets` are windows by package, int64 [n, length + 1]. Computed in float32.
    """
    torch.set_float32_matmul_precision("highest")
    sums = {}
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for package, windows in sets.items():
            accepted, count = torch.zeros(STEPS, dtype=torch.float64), 0
            for window in torch.split(windows.to(model.lm_head.weight.device), _EVALUATION_BATCH):
                hits = _hits(model, window[:, :-1])
                accepted += hits.cumprod(0).sum((1, 2)).double().cpu()
                count += hits[0].numel()
            sums[package] = (accepted, count)
    everything = torch.stack([accepted for accepted, _ in sums.values()]).sum(0)
    sums["all"] = (everything, sum(count for _, count in sums.values()))
    return {
        package: {
            "drafts": count,
            "accepted": [round(float(one) / count, 4) for one in accepted] if count else [],
        }
        for package, (accepted, count) in sums.items()
    }


def _hits(model: Model, tokens: Tensor) -> Tensor:
    """Whether each step's first choice is the main model's: int64 [steps, B, A]."""
    hidden = model(tokens)
    choices = model.logits(hidden).argmax(-1)
    count = anchors(tokens.shape[1], STEPS)
    states = unroll(model, tokens, hidden, STEPS)
    return torch.stack(
        [
            (model.logits(state).argmax(-1) == choices[:, step : step + count]).long()
            for step, state in enumerate(states, start=1)
        ]
    )
