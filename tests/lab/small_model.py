"""A small model of the testbed's architecture for tests, and text for it."""

from typing import cast

import torch

from gb10_lab.testbed.architecture import FULL, LINEAR, Architecture
from gb10_lab.testbed.model import Layer, Mixture, Model, initialise

SMALL = Architecture(
    vocabulary=300,
    hidden=32,
    layer_types=(LINEAR, LINEAR, FULL),
    heads=2,
    kv_heads=1,
    head_dim=16,
    rotary_dim=4,
    delta_key_heads=1,
    delta_value_heads=2,
    delta_head_dim=16,
    experts=4,
    experts_per_token=2,
    expert_size=16,
    shared_expert_size=32,
)


def make_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> Model:
    """A model whose outputs depend clearly on all its parts."""
    model = initialise(Model(SMALL), seed).to(dtype)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.mul_(2.0)
    return model


def mixture(model: Model, layer: int) -> Mixture:
    """The experts of a layer."""
    return cast(Layer, model.model.layers[layer]).mlp


def make_tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random token ids, int64 [batch, length]."""
    return torch.randint(SMALL.vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))
