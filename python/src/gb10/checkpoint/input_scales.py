"""Input scales that a W4A4 checkpoint lacks, told by the names in its headers.

Calibration does not reach every expert, and ModelOpt writes no ``input_scale`` for one that it missed.
`gb10.vllm_plugin.scales.activations` says what becomes of them.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from gb10.checkpoint.headers import Tensor

_PAIRS = (
    ("weight_scale_2", ("input_scale", "input_scale_2")),
    ("weight_global_scale", ("input_global_scale",)),
)
"""The global scale of an NVFP4 weight, and what the scale of the activations may be called beside it."""

_EXPERT = re.compile(r"(.*\bexperts)\.(\d+)\.(.+)")
_FUSED = {
    part: whole
    for whole, parts in {
        "qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "gate_up_proj": ("gate_proj", "up_proj"),
        "w13": ("w1", "w3"),
        "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    }.items()
    for part in parts
}
"""Projections that have the same input and that vLLM makes one layer of."""


@dataclass(frozen=True)
class Missing:
    """Tensors that are missing while others of the same layer are there."""

    names: tuple[str, ...]
    experts: int
    """Experts that lack one, each layer counted for itself."""
    layers: int

    def note(self, *, used: bool) -> str:
        """One line for the user. ``used``: activations are rounded to NVFP4 in this run."""
        first, more = self.names[0], len(self.names) - 1
        listed = f"{first}{f' and {more} more' if more else ''}"
        layers = _count(self.layers, "layer")
        whose = f"{_count(self.experts, 'expert')} in {layers}" if self.experts else layers
        what = (
            "each takes the largest one of its layer's other experts or parts"
            if used
            else "not needed here, activations are not rounded"
        )
        return f"scales  input scales are missing for {whose} ({listed}): {what}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _layer(module: str) -> tuple[str, str | None]:
    """(the layer of vLLM that a module becomes part of, the number of its expert if it is one's)."""
    expert = _EXPERT.fullmatch(module)
    stem, _, last = module.rpartition(".")
    stem = stem if expert is None else f"{expert[1]}.*"
    return f"{stem}.{_FUSED.get(last, last)}", None if expert is None else expert[2]


def find(tensors: Iterable[Tensor]) -> Missing | None:
    """The input scales that are missing in layers that have some; None if there are none of these.

    A layer without any is another matter: its checkpoint may say that activations are not quantised.
    """
    names = {tensor.name for tensor in tensors}
    found: list[str] = []
    experts: set[tuple[str, str]] = set()
    layers: set[str] = set()
    for weight, inputs in _PAIRS:
        groups: defaultdict[str, list[tuple[str, str | None, str | None]]] = defaultdict(list)
        for name in sorted(name for name in names if name.endswith(f".{weight}")):
            module = name.removesuffix(f".{weight}")
            layer, expert = _layer(module)
            word = next((word for word in inputs if f"{module}.{word}" in names), None)
            groups[layer].append((module, expert, word))
        for layer, modules in groups.items():
            word = next((word for _, _, word in modules if word), None)
            if word is None:
                continue
            for module, expert, own in modules:
                if own is None:
                    found.append(f"{module}.{word}")
                    stem = layer.rpartition(".")[0]
                    layers.add(stem)
                    if expert is not None:
                        experts.add((stem, expert))
    return Missing(tuple(found), len(experts), len(layers)) if found else None
