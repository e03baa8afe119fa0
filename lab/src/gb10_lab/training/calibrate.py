"""Find the largest activation at every site of the model, and the order of tokens by frequency."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gb10_lab.testbed.model import Model
from gb10_lab.testbed.mtp import unroll
from gb10_lab.training.train_draft import STEPS

DRAFT_VOCABULARY = "draft_vocabulary.json"


def calibrate(model: Model, batches: Iterator[Tensor], tokens: int) -> dict[str, Any]:
    """Run about `tokens` tokens, in batches of int64 [batch, length + 1], through model and draft head.

    Returns the number of tokens and, by site, the largest absolute activation: {"tokens": N, "amax": {..}}.
    Computed in float32.
    """
    amax: dict[str, Tensor] = {}

    def watch(name: str, activation: Tensor) -> Tensor:
        largest = activation.abs().amax()
        amax[name] = torch.maximum(amax[name], largest) if name in amax else largest
        return activation

    torch.set_float32_matmul_precision("highest")
    seen = 0
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        while seen < tokens:
            window = next(batches)[:, :-1]
            hidden = model(window, watch)
            model.logits(hidden, watch)
            for state in unroll(model, window, hidden, STEPS, watch):
                model.logits(state, watch)
            seen += window.numel()
    return {"tokens": seen, "amax": {name: float(value) for name, value in sorted(amax.items())}}


def draft_vocabulary(stream: Tensor, vocabulary: int) -> list[int]:
    """Give all token ids by falling frequency in the stream, equal ones by id."""
    counts = torch.bincount(stream.long(), minlength=vocabulary)
    return torch.argsort(counts, descending=True, stable=True).tolist()
