"""Read an NVFP4 checkpoint, some of it FP8 maybe, into float32 tensors and linear maps."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from gb10.nvfp4 import dequantize
from reference.activations import Recorder, Site

Substitute = Callable[[str], torch.Tensor]
"""Gives another float32 weight `[out, in]` for a quantised one, by its name."""


@dataclass(frozen=True)
class Linear:
    """y = x @ weight.T"""

    weight: torch.Tensor
    """float32 [out, in]"""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map float32 [T, in] to float32 [T, out]."""
        return x @ self.weight.T


class Checkpoint:
    """The tensors of a ModelOpt checkpoint, by name, as float32.

    With `quantize_activations` the model has the numerics of W4A4, without it those of W4A16.
    `substitute` replaces the weights that are quantised in the checkpoint: the control of a comparison.
    """

    def __init__(
        self, folder: Path, *, quantize_activations: bool = False, substitute: Substitute | None = None
    ) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.recorder = Recorder()
        self._tensors: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
        self._quantize_activations = quantize_activations
        self._substitute = substitute

    def names(self) -> list[str]:
        """Name all tensors but the scales of quantised modules."""
        scales = (".weight_scale", ".weight_scale_2", ".input_scale")
        return [name for name in self._tensors if not name.endswith(scales)]

    def quantized_names(self) -> list[str]:
        """Name the weights that are stored as NVFP4."""
        return [name.removesuffix("_scale_2") for name in self._tensors if name.endswith(".weight_scale_2")]

    def stored(self, name: str) -> torch.Tensor:
        """Give a tensor as it is in the file."""
        return self._tensors[name]

    def tensor(self, name: str) -> torch.Tensor:
        """Give an unquantised tensor as float32."""
        return self._tensors[name].to(torch.float32)

    def linear(self, prefix: str) -> Linear:
        """Give the linear map of a module, quantised in the checkpoint or not."""
        name = f"{prefix}.weight"
        scale_name = f"{name}_scale"
        if scale_name not in self._tensors:
            return Linear(self.tensor(name))
        if self._substitute is not None:
            return Linear(self._substitute(name))
        if f"{scale_name}_2" not in self._tensors:
            return Linear(self.tensor(name) * self.tensor(scale_name))
        return Linear(
            dequantize(
                self._tensors[name],
                self._tensors[scale_name],
                self._tensors[f"{scale_name}_2"],
                torch.float32,
            )
        )

    def site(self, prefixes: Sequence[str]) -> Site:
        """Give the place where activations enter these modules, which share one input scale or have none."""
        name = prefixes[0]
        found = [self._tensors.get(f"{prefix}.input_scale") for prefix in prefixes]
        scales = [scale for scale in found if scale is not None]
        if not self._quantize_activations or not scales:
            return Site(name, None, self.recorder)
        if len(scales) != len(found) or any(not torch.equal(scale, scales[0]) for scale in scales):
            raise ValueError(f"{', '.join(prefixes)} read the same input with different input scales")
        return Site(name, scales[0], self.recorder)
