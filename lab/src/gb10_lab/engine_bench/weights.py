"""Seeded weights of sane magnitudes in the place of a checkpoint: activations stay near 1 through all layers.

vLLM's own dummy weights are tiny and leave packed FP4 as it was in memory, so routers choose the same experts
for every token and attention sees constants. Here a weight's values follow from its name alone: every
configuration that builds the same tensors gets the same model.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of FP4."""
SCALE_CODES = (0x30, 0x40)
"""E4M3 codes of block scales, from and below: 0.5 to 1.875."""
INPUT_SCALE = 0.002
"""Global scale of quantised activations: a largest value of 5 over 448 x 6."""
HEAD_GAIN = 2.0
"""Standard deviation of the logits."""
GATE_STEPS = (-3.0, 1.0)
"""Range of GDN's dt_bias; its decay is drawn from 1 to 16."""


def fill(name: str, tensor: torch.Tensor, beside: Mapping[str, torch.Tensor], centred_norm: bool) -> None:
    """Give ``tensor`` its values, which depend on ``name`` (with the layer's) and its shape alone.

    ``beside`` are the layer's tensors by their own names: a global scale needs the width of its weight.
    ``centred_norm`` says that the layer adds 1 to its norm weight. Integers other than packed FP4 stay.
    """
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return
    data = tensor.data
    leaf = name.rpartition(".")[2]
    generator = torch.Generator(device=data.device).manual_seed(zlib.crc32(name.encode()))
    if data.dtype == torch.uint8:
        data.random_(0, 256, generator=generator)
    elif data.dtype == torch.float8_e4m3fn:
        data.view(torch.uint8).random_(*SCALE_CODES, generator=generator)
    elif not data.is_floating_point():
        return
    elif leaf.endswith(("weight_scale_2", "weight_global_scale")):
        data.fill_(_global_scale(2 * _width(leaf, beside)))
    elif leaf.endswith("input_scale"):
        data.fill_(INPUT_SCALE)
    elif leaf == "A_log":
        data.uniform_(1, 16, generator=generator).log_()
    elif leaf == "dt_bias":
        data.uniform_(*GATE_STEPS, generator=generator)
    elif data.numel() == 1:
        data.fill_(1.0)
    elif "cos_sin" in leaf:
        return
    elif data.dim() == 1:
        data.normal_(0, 0.05, generator=generator)
        if "norm" in name and not centred_norm:
            data.add_(1.0)
    elif "conv1d" in name:
        data.normal_(0, 0.4, generator=generator)
    elif "embed_tokens" in name:
        data.normal_(0, 1, generator=generator)
    else:
        gain = HEAD_GAIN if "lm_head" in name else 1.0
        data.normal_(0, gain / math.sqrt(data.shape[-1]), generator=generator)


def _width(leaf: str, beside: Mapping[str, torch.Tensor]) -> int:
    """Bytes in a row of the packed weight that the global scale ``leaf`` belongs to."""
    weight = beside.get(leaf.partition("_scale")[0].removesuffix("_global"))
    if weight is None:
        raise ValueError(f"no weight beside {leaf}, only {', '.join(beside)}")
    return weight.shape[-1]


def _global_scale(columns: int) -> float:
    """What makes random FP4 codes and block scales weights of standard deviation 1 / sqrt(columns)."""
    codes = torch.arange(*SCALE_CODES, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    variance = torch.tensor(E2M1).square().mean() * codes.square().mean()
    return float(1 / (variance.sqrt() * math.sqrt(columns)))


def install() -> None:
    """Have vLLM's loader of dummy weights fill tensors so; its own walk, online quantisation too, stays."""
    from vllm.model_executor.model_loader import dummy_loader

    if dummy_loader.initialize_single_dummy_weight.__module__ == __name__:
        return
    load_weights = dummy_loader.DummyModelLoader.load_weights
    layer_info = dummy_loader.get_layerwise_info
    at: dict[str, Any] = {}

    def load(self: Any, model: torch.nn.Module, model_config: Any) -> None:
        at["names"] = {id(module): name for name, module in model.named_modules()}
        load_weights(self, model, model_config)
        at.clear()

    def enter(layer: torch.nn.Module) -> Any:
        at["layer"] = layer
        return layer_info(layer)

    def one(tensor: torch.Tensor) -> None:
        layer = at["layer"]
        tensors = dummy_loader.get_layer_tensors(layer)
        leaf = next(name for name, each in tensors.items() if each is tensor)
        centred = type(layer).__name__.startswith("Gemma")
        fill(f"{at['names'][id(layer)]}.{leaf}", tensor, tensors, centred)

    dummy_loader.DummyModelLoader.load_weights = load
    dummy_loader.get_layerwise_info = enter
    dummy_loader.initialize_single_dummy_weight = one
