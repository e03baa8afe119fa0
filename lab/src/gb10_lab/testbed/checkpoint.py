"""Model folders in Hugging Face's form: BF16 safetensors, config.json, generation_config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from gb10.errors import UserError
from gb10.files import read_json, replacing, write_json
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gb10_lab.testbed.architecture import END_OF_TEXT, END_OF_TURN, Architecture, from_config, to_config

if TYPE_CHECKING:
    from gb10_lab.testbed.model import Model

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
GENERATION = "generation_config.json"
CALIBRATION = "calibration.json"
RECORD = "training.json"
_STACKED = {f"experts.{part}": f"{part}_proj" for part in ("gate", "up", "down")}


def to_tensors(model: "Model") -> dict[str, Tensor]:
    """Give all parameters by their Hugging Face names, experts one by one. They share the model's memory."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        stack = next((part for part in _STACKED if name.endswith(f".{part}")), None)
        if stack is None:
            tensors[name] = parameter.detach()
            continue
        prefix = name.removesuffix(stack)
        for expert, tensor in enumerate(parameter.detach()):
            tensors[f"{prefix}experts.{expert}.{_STACKED[stack]}.weight"] = tensor
    return tensors


def assign(model: "Model", tensors: Mapping[str, Tensor]) -> "Model":
    """Copy tensors, given by their Hugging Face names, into the model, converted to its type and device.

    Raises UserError when one is missing, unknown or of another shape.
    """
    targets = to_tensors(model)
    if targets.keys() != tensors.keys():
        missing, unknown = sorted(targets.keys() - tensors.keys()), sorted(tensors.keys() - targets.keys())
        raise UserError(
            f"the weights are not those of this model: missing {missing[:3]}, unknown {unknown[:3]}"
        )
    for name, target in targets.items():
        if target.shape != tensors[name].shape:
            raise UserError(f"{name} is {list(tensors[name].shape)}, not {list(target.shape)}")
        target.copy_(tensors[name])
    return model


def from_tensors(
    arch: Architecture, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> "Model":
    """Make a model on the CPU from tensors by their Hugging Face names. See `assign`."""
    # Whoever only reads or writes tensors, as the quantiser does, needs no model.
    from gb10_lab.testbed.model import Model

    return assign(Model(arch).to(dtype), tensors)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of a model folder as they are stored. Raises UserError when that is not possible."""
    path = folder / WEIGHTS
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def read_architecture(folder: Path) -> Architecture:
    """Read the sizes from a model folder's config.json. Raises UserError when that is not possible."""
    return from_config(read_json(folder / CONFIG))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> "Model":
    """Read a model folder into a model on the CPU. Raises UserError when that is not possible."""
    return from_tensors(read_architecture(folder), read_tensors(folder), dtype)


def round_to_bf16(model: "Model") -> None:
    """Round all parameters, in place, to the values that the checkpoint can hold."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))


def save(model: "Model", folder: Path) -> None:
    """Write weights and configuration into `folder`, which is made when missing; each file all or nothing.

    Raises UserError when the folder cannot be written.
    """
    tensors = {
        name: tensor.to("cpu", torch.bfloat16).contiguous().clone()
        for name, tensor in to_tensors(model).items()
    }
    write_json(folder / CONFIG, to_config(model.arch))
    write_json(
        folder / GENERATION,
        {
            "bos_token_id": END_OF_TEXT,
            "eos_token_id": [END_OF_TURN, END_OF_TEXT],
            "pad_token_id": END_OF_TEXT,
        },
    )
    with replacing(folder / WEIGHTS) as part:
        save_file(tensors, part, metadata={"format": "pt"})


def read_amax(path: Path) -> dict[str, float]:
    """Read the largest activations by site from a calibration file. Raises UserError when it is none."""
    content = read_json(path)
    amax = content.get("amax") if isinstance(content, dict) else None
    if not isinstance(amax, dict):
        raise UserError(f"{path} has no object 'amax'; calibrate again")
    for site, value in amax.items():
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise UserError(f"{path}: the amax of {site} is {value}, not a positive number; calibrate again")
    return amax
