"""Where vLLM's NVFP4 methods keep a layer's scales between loading and processing."""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.model_executor.layers.quantization.utils.quant_utils import kNvfp4Static

_QUANTIZATION = "vllm.model_executor.layers.quantization"
_COMPRESSED = f"{_QUANTIZATION}.compressed_tensors"


@dataclass(frozen=True)
class Form:
    """One class of vLLM that builds NVFP4 layers.

    ``weight`` and ``activation`` are the layer's parameters with the global scales; experts' have a prefix,
    ``w13_`` or ``w2_``. The block scales are in ``weight_scale`` everywhere. ``inverse``: what is stored is
    the scale's reciprocal, as in compressed-tensors.
    """

    module: str
    name: str
    weight: str
    activation: str
    inverse: bool = False
    experts: bool = False

    def scales(self, layer: torch.nn.Module, name: str) -> torch.Tensor:
        """A copy of the global scales of a parameter, float32, as they multiply."""
        stored: torch.Tensor = getattr(layer, name).data.to(torch.float32)
        return stored.reciprocal() if self.inverse else stored.clone()

    def store(self, layer: torch.nn.Module, name: str, scales: torch.Tensor) -> None:
        """Put global scales (as they multiply) into a parameter; another shape replaces its tensor."""
        parameter = getattr(layer, name)
        # The reciprocal of a number that is a rounded reciprocal itself leads back to it.
        stored = scales.reciprocal() if self.inverse else scales
        if stored.shape == parameter.shape:
            parameter.data.copy_(stored)
        else:
            parameter.data = stored.to(parameter.dtype)


FORMS = (
    Form(f"{_QUANTIZATION}.modelopt", "ModelOptLinearMethod", "weight_scale_2", "input_scale"),
    Form(f"{_QUANTIZATION}.modelopt", "ModelOptNvFp4FusedMoE", "weight_scale_2", "input_scale", experts=True),
    Form(
        f"{_COMPRESSED}.schemes.compressed_tensors_w4a4_nvfp4",
        "CompressedTensorsW4A4Fp4",
        "weight_global_scale",
        "input_global_scale",
        inverse=True,
    ),
    Form(
        f"{_COMPRESSED}.compressed_tensors_moe.compressed_tensors_moe_w4a4_nvfp4",
        "CompressedTensorsW4A4Nvfp4MoEMethod",
        "weight_global_scale",
        "input_global_scale",
        inverse=True,
        experts=True,
    ),
    Form(f"{_QUANTIZATION}.quark.schemes.quark_nvfp4", "QuarkNVFP4", "weight_scale_2", "input_scale_2"),
    Form(
        f"{_QUANTIZATION}.quark.quark_moe",
        "QuarkNvfp4MoEMethod",
        "weight_scale_2",
        "input_scale_2",
        experts=True,
    ),
)


_WEIGHT_ONLY = ("Dequant", "Packed", "Native", "Marlin", "Humming")
"""Words in the names of kernel and experts classes that leave activations as they are."""


def is_nvfp4(method: Any) -> bool:
    """Whether a method or scheme of one of ``FORMS`` builds an NVFP4 layer; ModelOpt's builds others too."""
    spec = getattr(method, "spec", None)
    return spec is None or spec.weight == kNvfp4Static


def is_weight_only(method: Any) -> bool:
    """Whether the checkpoint says that the layer's activations stay as they are (W4A16)."""
    spec = getattr(method, "spec", None)
    return bool(getattr(method, "use_a16", False)) if spec is None else spec.activation is None


def rounds_activations(method: Any) -> bool:
    """Whether what runs the layer rounds its activations to NVFP4, and so needs their scale.

    Weight-only are ours but for emulation, and of vLLM's Marlin and Humming.
    """
    if is_weight_only(method):
        return False
    if hasattr(method, "experts_cls"):
        runs = method.experts_cls
    else:
        runs = type(getattr(method.kernel, "inner", method.kernel))
    return not any(word in runs.__name__ for word in _WEIGHT_ONLY)


def takes_row_scales(runs: type) -> bool:
    """Whether a kernel or experts class of ours reads a global scale for each row of the weight."""
    return bool(getattr(runs, "takes_row_scales", False))


def label(layer: Any) -> str:
    """The layer's name in messages."""
    return str(getattr(layer, "layer_name", "") or getattr(layer, "prefix", "") or type(layer).__name__)
