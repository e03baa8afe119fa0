"""The rows of the table: which weights are stored how, and what happens to activations and to the KV cache.

Weights of a variant are float32 and stand for what the engine computes with: NVFP4 is dequantised and rounded
once to BF16, as gb10's plug-in does on a CPU; FP8 is not rounded, since its kernel multiplies the 8-bit
numbers and scales each row's sum.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

import torch

from gb10 import fp8, nvfp4
from gb10.checkpoint import modelopt
from gb10.nvfp4 import (
    BLOCK_SIZE,
    NvFp4Tensor,
    dequantize,
    fake_quantize_activations,
    global_scale_for,
)
from gb10.sparse24 import Loss, pack, total, unpack
from gb10_lab.testbed.quantize import Scales, quantize_tensors

Tensors = dict[str, torch.Tensor]
Site = Callable[[str, torch.Tensor], torch.Tensor]

REFERENCE = "bf16"
"""The key of the row that all others are compared with."""

_NVFP4_INPUTS = (
    "model.layers.*.linear_attn.out_proj",
    "model.layers.*.self_attn.o_proj",
    "model.layers.*.mlp.*.gate_up_proj",
    "model.layers.*.mlp.*.down_proj",
)
"""The sites in front of the layers that are NVFP4 as shipped, as calibration.json names them."""

_EXPERT = re.compile(r"\.experts\.\d+\.")
_KV_CACHE = re.compile(r"\.self_attn\.[kv]_cache$")


class Format(Enum):
    """How a matrix is stored."""

    BF16 = "bf16"
    FP8 = "fp8"
    NVFP4 = "nvfp4"
    SPARSE24 = "sparse24"

    def bytes(self, rows: int, columns: int) -> int:
        """Bytes of one matrix with its scales. 2 of 4 is counted without the padding to whole tiles."""
        values = rows * columns
        if self is Format.BF16:
            return 2 * values
        if self is Format.FP8:
            return values + 4 * rows
        if self is Format.NVFP4:
            return values // 2 + values // BLOCK_SIZE + 4
        return values * 13 // 32 + 4


@dataclass(frozen=True)
class Variant:
    """One row. Without `tensors` it has those of BF16."""

    key: str
    name: str
    tensors: Tensors
    """float32, by Hugging Face's names; without the MTP head, which is no part of this."""
    site: Site
    bytes: int
    """Bytes of weights that one decoded token reads: no embeddings, and of the experts the chosen ones."""
    dropped: Loss | None = None
    """What 2 of 4 left out."""


def identity(_name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Change nothing."""
    return tensor


def fp8_kv_cache(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Round keys and values to E4M3 with scale 1, saturating, as vLLM does without calibrated scales."""
    return fp8.encode(tensor).to(tensor.dtype) if _KV_CACHE.search(name) else tensor


def w4a4(amax: Mapping[str, float]) -> Site:
    """Round the inputs of the layers that are NVFP4 as shipped, with the calibrated `amax` of each site.

    The inputs of layers whose weights stay BF16 stay as they are.
    """
    scales = {
        site: global_scale_for(value)
        for site, value in amax.items()
        if any(fnmatchcase(site, pattern) for pattern in _NVFP4_INPUTS)
    }

    def quantise(name: str, tensor: torch.Tensor) -> torch.Tensor:
        scale = scales.get(name)
        return tensor if scale is None else fake_quantize_activations(tensor, scale)

    return quantise


def make_variants(
    checkpoint: Mapping[str, torch.Tensor], amax: Mapping[str, float], experts_per_token: int
) -> Iterator[Variant]:
    """Make all rows of the BF16 tensors `checkpoint` and the calibrated `amax` of `calibration.json`.

    BF16 comes first. Raises UserError when a site is not calibrated.
    """
    source = {name: tensor for name, tensor in checkpoint.items() if not name.startswith("mtp.")}
    reading = _Reading(source, experts_per_token)
    plain = {name: tensor.to(torch.float32) for name, tensor in source.items()}
    shipped = quantize_tensors(source, amax, modelopt.AS_SHIPPED)
    none_of_it = _without(modelopt.AS_SHIPPED, modelopt.DENSE + modelopt.HEAD)
    everything = quantize_tensors(source, amax, none_of_it)
    searched = quantize_tensors(source, amax, modelopt.AS_SHIPPED, Scales.SEARCH)
    at_load = quantize_tensors(source, amax, none_of_it, Scales.SEARCH, _scale_at_load)
    as_shipped = dequantised(shipped)

    def change(names: set[str], convert: Callable[[str], torch.Tensor]) -> Tensors:
        return as_shipped | {name: convert(name) for name in sorted(names)}

    def in_fp8(name: str) -> torch.Tensor:
        return fp8.dequantize(*fp8.quantize_rows(source[name]))

    def in_nvfp4_plain(name: str) -> torch.Tensor:
        return _weight(everything, name)

    def nvfp4_at_load(name: str) -> torch.Tensor:
        return _weight(at_load, name)

    def nvfp4_searched(name: str) -> torch.Tensor:
        return _weight(searched, name)

    packed = {name for name in source if f"{name}_scale" in shipped}
    dense, head = _matching(source, modelopt.DENSE), _matching(source, modelopt.HEAD)
    in_nvfp4 = dict.fromkeys(packed, Format.NVFP4)
    yield Variant(REFERENCE, "BF16", plain, identity, reading.bytes({}))
    yield Variant("bf16-fp8-kv", "BF16, FP8 KV cache", plain, fp8_kv_cache, reading.bytes({}))
    size = reading.bytes(in_nvfp4)
    yield Variant("shipped", "NVFP4 as shipped (W4A16)", as_shipped, identity, size)
    yield Variant("shipped-w4a4", "NVFP4 as shipped, W4A4", as_shipped, w4a4(amax), size)
    for key, name, names, convert, form in (
        ("fp8-dense", "+ FP8 dense", dense, in_fp8, Format.FP8),
        ("fp8-dense-head", "+ FP8 dense and head", dense | head, in_fp8, Format.FP8),
        ("nvfp4-dense", "+ NVFP4 dense", dense, in_nvfp4_plain, Format.NVFP4),
        ("nvfp4-dense-head", "+ NVFP4 dense and head", dense | head, in_nvfp4_plain, Format.NVFP4),
        ("nvfp4-dense-search", "+ NVFP4 dense, searched", dense, nvfp4_at_load, Format.NVFP4),
        (
            *("nvfp4-dense-head-search", "+ NVFP4 both, searched"),
            *(dense | head, nvfp4_at_load, Format.NVFP4),
        ),
        ("shipped-search", "as shipped, searched", packed, nvfp4_searched, Format.NVFP4),
    ):
        size_of = reading.bytes(in_nvfp4 | dict.fromkeys(names, form))
        yield Variant(key, name, change(names, convert), identity, size_of)
    routed = {name for name in packed if _EXPERT.search(name)}
    sparse, losses = _sparse(shipped, routed)
    size_of = reading.bytes(in_nvfp4 | dict.fromkeys(routed, Format.SPARSE24))
    yield Variant("sparse24", "+ 2:4 sparse experts", as_shipped | sparse, identity, size_of, losses)
    yield Variant("fp8-kv", "+ FP8 KV cache", as_shipped, fp8_kv_cache, size)


def _scale_at_load(amax: float) -> torch.Tensor:
    """A weight's global scale where `gb10 serve` requantises it (`gb10.vllm_plugin.cuda.requant.convert`)."""
    return nvfp4.power_of_two(nvfp4.global_scale_for(amax))


class _Reading:
    """How many bytes of weights one decoded token reads."""

    def __init__(self, source: Mapping[str, torch.Tensor], experts_per_token: int) -> None:
        self._shapes = {
            name: tuple(t.shape) for name, t in source.items() if name != "model.embed_tokens.weight"
        }
        experts = {match[0] for name in self._shapes if (match := _EXPERT.search(name))}
        self._experts, self._chosen = max(1, len(experts)), experts_per_token

    def bytes(self, formats: Mapping[str, Format]) -> int:
        """Count them, with BF16 for what `formats` does not name. All experts have one shape."""
        always, routed = 0, 0
        for name, shape in self._shapes.items():
            rows, columns = shape[0], torch.Size(shape[1:]).numel()
            size = formats.get(name, Format.BF16).bytes(rows, columns)
            if _EXPERT.search(name):
                routed += size
            else:
                always += size
        return always + routed * self._chosen // self._experts


def dequantised(stored: Mapping[str, torch.Tensor]) -> Tensors:
    """Give the tensors of a checkpoint as float32; what is NVFP4 is rounded once to BF16."""
    scales = (".weight_scale", ".weight_scale_2", ".input_scale")
    return {name: _weight(stored, name) for name in stored if not name.endswith(scales)}


def _weight(stored: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """Give a tensor of a checkpoint as float32, dequantised and rounded once to BF16 where it is NVFP4."""
    if f"{name}_scale" not in stored:
        return stored[name].to(torch.float32)
    return _rounded(_nvfp4(stored, name))


def _nvfp4(stored: Mapping[str, torch.Tensor], name: str) -> NvFp4Tensor:
    return NvFp4Tensor(stored[name], stored[f"{name}_scale"], stored[f"{name}_scale_2"])


def _rounded(weight: NvFp4Tensor) -> torch.Tensor:
    return dequantize(*weight, dtype=torch.bfloat16).to(torch.float32)


def _sparse(stored: Mapping[str, torch.Tensor], names: set[str]) -> tuple[Tensors, Loss]:
    tensors, losses = {}, []
    for name in sorted(names):
        weight, loss = pack(_nvfp4(stored, name), name=name, allow_loss=True)
        tensors[name] = _rounded(unpack(weight))
        losses.append(loss)
    return tensors, total(losses)


def _matching(names: Mapping[str, torch.Tensor], patterns: Sequence[str]) -> set[str]:
    return {name for name in names if modelopt.is_excluded(name.removesuffix(".weight"), patterns)}


def _without(patterns: Sequence[str], removed: Sequence[str]) -> list[str]:
    return [pattern for pattern in patterns if pattern not in removed]
