"""Post-training quantisation: a BF16 checkpoint with calibrated activations to NVFP4 in ModelOpt's format.

    weight          E2M1 codes, two per byte            uint8 [out, in / 2]
    weight_scale    one UE4M3 number per 16 inputs      float8_e4m3fn [out, in / 16]
    weight_scale_2  amax(weights that are fused) / 2688   float32 []
    input_scale     amax(calibrated input) / 2688         float32 []

The same input gives the same bytes on every machine. All arithmetic is single float32 multiplications,
divisions, comparisons and roundings, which IEEE 754 defines to the last bit; nothing is summed (but for the
search of block scales, which adds in a fixed order), so neither threads nor vector widths can change an
order. What does depend on the machine, the numbers that a calibration run saw, comes from a file.
"""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
from safetensors.torch import save_file
from typer import Option

from gb10.checkpoint import modelopt
from gb10.errors import UserError
from gb10.files import new_folder, read_json, write_json
from gb10.nvfp4 import NvFp4Tensor, global_scale_for, quantize, quantize_searched
from gb10_lab.testbed.checkpoint import CALIBRATION, CONFIG, GENERATION, WEIGHTS, read_amax, read_tensors

Tensors = dict[str, torch.Tensor]


class Scales(StrEnum):
    """How block scales are chosen: amax / 6, as ModelOpt does, or by search (`gb10.nvfp4.search`)."""

    AMAX = "amax"
    SEARCH = "search"

    def quantize(self, weight: torch.Tensor, global_scale: torch.Tensor) -> NvFp4Tensor:
        """Quantise `weight` `[..., K]`. Raises as `gb10.nvfp4.quantize` does."""
        make = quantize if self is Scales.AMAX else quantize_searched
        return make(weight, global_scale)


_COPIED = (GENERATION, "tokenizer.json", "tokenizer_config.json")

_FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
    "in_proj_qkvz": "in_proj",
    "in_proj_ba": "in_proj",
}
"""Linear layers with one input, which the engine makes one layer of: they share their scales."""


def run(
    model: Annotated[Path, Option(metavar="DIR", help="BF16 checkpoint with calibration.json")],
    out: Annotated[Path, Option(metavar="DIR", help="folder to make; must not have files")],
    scales: Annotated[Scales, Option(help="block scales: amax / 6, or of least error")] = Scales.AMAX,
) -> int:
    """Write the NVFP4 checkpoint, without what NVIDIA leaves out."""
    tensors = quantize_checkpoint(model, out, scales=scales)
    packed = sum(name.endswith(".weight_scale") for name in tensors)
    size = sum(tensor.nbytes for tensor in tensors.values())
    print(f"{out}: {packed} modules in NVFP4, {size / 1e6:.1f} MB of tensors")
    return 0


def quantize_checkpoint(
    model: Path,
    out: Path,
    exclude: Sequence[str] = modelopt.AS_SHIPPED,
    scales: Scales = Scales.AMAX,
) -> Tensors:
    """Quantise the BF16 checkpoint in the folder `model` to the new folder `out`. Returns what was written.

    `model` holds `config.json`, `generation_config.json`, the tokenizer's two files, `model.safetensors` and
    `calibration.json`. `exclude` are the module patterns that stay BF16.

    Raises UserError when a file is missing or does not fit the others, and when `out` is taken.
    """
    config = read_json(model / CONFIG)
    if not isinstance(config, dict):
        raise UserError(f"{model / CONFIG} is not a JSON object")
    if "quantization_config" in config:
        raise UserError(f"{model} is quantised already; give the BF16 checkpoint it was made from")
    tensors = quantize_tensors(read_tensors(model), read_amax(model / CALIBRATION), exclude, scales)
    with new_folder(out) as part:
        write_json(part / CONFIG, config | {"quantization_config": modelopt.config_section(exclude)})
        write_json(part / "hf_quant_config.json", modelopt.side_file(exclude))
        for name in _COPIED:
            try:
                shutil.copyfile(model / name, part / name)
            except FileNotFoundError as error:
                raise UserError(f"{model} has no {name}") from error
        save_file(tensors, part / WEIGHTS, metadata={"format": "pt"})
    return tensors


def quantize_tensors(
    tensors: Mapping[str, torch.Tensor],
    amax: Mapping[str, float],
    exclude: Sequence[str],
    scales: Scales = Scales.AMAX,
    scale_for: Callable[[float], torch.Tensor] = global_scale_for,
) -> Tensors:
    """Quantise the weights `[out, in]` of all linear layers but those that `exclude` names.

    `amax` gives the largest magnitude of each input site, `scale_for` a weight's global scale of its largest.
    All other tensors come back as they are.

    Raises UserError when a site is missing, or when a weight cannot be stored in NVFP4.
    """
    modules = {
        name.removesuffix(".weight"): tensor
        for name, tensor in tensors.items()
        if _is_linear(name, tensor) and not modelopt.is_excluded(name.removesuffix(".weight"), exclude)
    }
    largest: dict[str, float] = {}
    for module, weight in modules.items():
        layer = _fused_layer(module)
        largest[layer] = max(largest.get(layer, 0.0), float(weight.abs().max()))
    result = {name: tensor for name, tensor in tensors.items() if name.removesuffix(".weight") not in modules}
    for module, weight in modules.items():
        try:
            stored = scales.quantize(weight, scale_for(largest[_fused_layer(module)]))
        except (TypeError, ValueError) as error:
            raise UserError(f"{module}.weight cannot be NVFP4: {error}") from error
        result |= {
            f"{module}.weight": stored.packed,
            f"{module}.weight_scale": stored.block_scales,
            f"{module}.weight_scale_2": stored.global_scale,
            f"{module}.input_scale": global_scale_for(_input_amax(module, amax)),
        }
    return result


def _is_linear(name: str, tensor: torch.Tensor) -> bool:
    return name.endswith(".weight") and tensor.ndim == 2 and name != "model.embed_tokens.weight"


def _fused_layer(module: str) -> str:
    """Name the layer that the engine makes of a module and its neighbours."""
    parent, dot, name = module.rpartition(".")
    return parent + dot + _FUSED.get(name, name)


def _input_amax(module: str, amax: Mapping[str, float]) -> float:
    """Give the largest magnitude of a module's input. All experts of a layer have one site."""
    site = re.sub(r"\.experts\.\d+\.", ".experts.", _fused_layer(module))
    if site not in amax:
        raise UserError(f"calibration.json has no amax of {site}, the input of {module}; calibrate again")
    return amax[site]
