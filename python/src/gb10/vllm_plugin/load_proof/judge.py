"""Which parameters a load left unwritten, and which of them may be.

The exceptions are those of vLLM's own check of quantised models (DefaultModelLoader.track_weights_loading),
which names whole parameters only, and what vLLM puts in place of a draft model's embedding and head.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import nn
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod, KVCacheScaleParameter
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.default_loader import _CONFIG_BUILT_PARAMS
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import SKIP_LOAD_TENSORS

from gb10.vllm_plugin.load_proof import values
from gb10.vllm_plugin.load_proof.coverage import gaps
from gb10.vllm_plugin.load_proof.names import Filled, missing, renamed
from gb10.vllm_plugin.load_proof.writes import Given, Writes

INPUT_SCALES = ("input_scale", "input_scale_2", "input_global_scale")
"""Scales of activations. A calibration that never reached an expert leaves none; that is dealt with
elsewhere."""


_TYPES: dict[torch.dtype, str] = {dtype: name for name, dtype in safetensors.torch._TYPES.items()}


def type_text(dtype: torch.dtype) -> str:
    """A type as checkpoints call it."""
    return _TYPES.get(dtype, str(dtype).removeprefix("torch."))


def tensor_text(name: str, tensor: torch.Tensor | Given) -> str:
    """``name (BF16, [4, 2])``."""
    return f"{name} ({type_text(tensor.dtype)}, [{', '.join(map(str, tensor.shape))}])"


def _is_weight_only(method: Any) -> bool:
    """Whether a ModelOpt layer's activations stay as they are: vLLM drops an input scale, if there is one."""
    spec = getattr(method, "spec", None)
    return spec is not None and spec.activation is None


@dataclass(frozen=True)
class Gap:
    """A parameter that the checkpoint does not fill. ``names``: its tensors that are missing, if known."""

    parameter: str
    whole: bool
    """Whether nothing of it is filled."""
    names: tuple[str, ...]

    @property
    def text(self) -> str:
        """For a list of what is missing: the checkpoint's names, else the parameter's own."""
        if self.names:
            return self.names[0]
        return self.parameter if self.whole else f"part of {self.parameter}"


@dataclass
class Parameters:
    """All parameters of a model with what was written to them; made right after the load."""

    model: nn.Module
    writes: Writes
    loaded: set[str] | None
    """What the model says that it loaded; None when it does not say."""
    draft: bool
    """Whether this is the model that drafts: the target's embedding and head replace its own."""
    names: set[str] = field(default_factory=set)
    """The tensors that the checkpoint has."""

    def _each(self) -> Iterator[tuple[str, Any, Any]]:
        """(name, module that holds it, parameter), each parameter once."""
        seen: set[int] = set()
        for prefix, module in self.model.named_modules():
            for leaf, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{prefix}.{leaf}" if prefix else leaf, module, parameter

    def may_be_absent(self, name: str, module: Any, parameter: Any) -> bool:
        """Whether a checkpoint may do without this parameter."""
        leaf = name.rpartition(".")[2]
        method = getattr(module, "quant_method", None)
        return (
            isinstance(parameter, KVCacheScaleParameter)
            or isinstance(method, BaseKVCacheMethod)
            # Quantised while it was loaded, once all of it was there; what is pending is not whole.
            or (getattr(method, "uses_meta_device", False) and not get_layerwise_info(module).can_load())
            or leaf in _CONFIG_BUILT_PARAMS
            or leaf.endswith(INPUT_SCALES)
            or (self.draft and isinstance(module, VocabParallelEmbedding))
            # auto_gptq makes biases for all experts and drops those that were not loaded.
            or (leaf.endswith("_bias") and "GPTQ" in type(method).__name__)
        )

    def source(self, name: str, parameter: Any, element: int) -> str:
        """The checkpoint's tensor that an element came from, by its number in the flat parameter.

        ``name``, the parameter's own, where that is not known.
        """
        found = self.writes.of(parameter)
        if found is None or found[1].outer:
            return name
        at = found[1].start + element * parameter.element_size()
        writers = [
            writer
            for one, writer in found[0].regions.items()
            if writer is not None and not one.outer and one.start <= at < one.end
        ]
        return writers[-1] if writers else name

    def faults(self) -> list[str]:
        """One text for each parameter with values that cannot be computed with.

        What a checkpoint may do without is looked at where it has been loaded whole.
        """
        found = []
        for name, module, parameter in self._each():
            at = self.writes.of(parameter)
            if self.may_be_absent(name, module, parameter) and (at is None or gaps(at[1], at[0].regions)):
                continue
            leaf = name.rpartition(".")[2]
            if leaf.endswith(INPUT_SCALES) and _is_weight_only(getattr(module, "quant_method", None)):
                continue
            if (fault := values.fault(leaf, parameter)) is not None:
                found.append(f"{self.source(name, parameter, fault.element)} {fault.text}")
        return found

    def changes(self) -> list[str]:
        """One text for each of the checkpoint's tensors that was not copied as it is, in the model's order.

        One number may stand for many where it is a scale.
        """
        found = {}
        for name, module, parameter in self._each():
            at = self.writes.of(parameter)
            # A layer that is quantised while it is loaded converts what it gets.
            if at is None or getattr(getattr(module, "quant_method", None), "uses_meta_device", False):
                continue
            is_scale = "scale" in name.rpartition(".")[2]
            for writer, copy in at[0].doubtful.items():
                if not copy.exact:
                    found[writer] = (
                        f"{writer} is of type {type_text(copy.source)}, and the model reads it as "
                        + (f"{type_text(copy.target)}, which would change its numbers")
                    )
                elif not (is_scale and copy.numbers == 1):
                    found[writer] = (
                        f"{writer} has fewer numbers than {tensor_text(name, parameter)}, where it belongs"
                    )
        return list(found.values())

    def idle_blocks(self) -> int:
        """How many blocks have a scale of 0 and codes that are not 0."""
        return sum(
            values.idle_blocks(module, leaf)
            for name, module, _ in self._each()
            if (leaf := name.rpartition(".")[2]).endswith("weight_scale")
        )

    def find(self) -> list[Gap]:
        """All gaps, in the model's order."""
        kinds: defaultdict[tuple[str, int], list[Filled]] = defaultdict(list)
        open_: list[tuple[Filled, list[tuple[int, int]]]] = []
        for name, module, parameter in self._each():
            found = self.writes.of(parameter)
            if found is None:
                # Empty, or its content came with its storage.
                continue
            storage, whole = found
            size = whole.end - whole.start
            slices = parameter.shape[0] if isinstance(module, RoutedExperts) and parameter.ndim > 0 else 1
            filled = Filled(name, whole.start, size, slices, storage.regions)
            kinds[filled.kind].append(filled)
            left = gaps(whole, storage.regions)
            if left and not self._excused(name, module, parameter, left, storage.raw):
                open_.append((filled, left))
        return [self._gap(filled, left, kinds[filled.kind]) for filled, left in open_]

    def _excused(
        self, name: str, module: Any, parameter: Any, left: list[tuple[int, int]], raw: bool
    ) -> bool:
        if self.may_be_absent(name, module, parameter):
            return True
        size = parameter.numel() * parameter.element_size()
        unwritten = sum(last - first for first, last in left)
        if unwritten < size:
            return _is_padding(module, parameter, name, left, raw)
        # Nothing came for it. It has a value of its own when the model made one.
        known = self.loaded is None or name in self.loaded or name.rpartition(".")[2] in SKIP_LOAD_TENSORS
        return known and not raw

    def _gap(self, filled: Filled, left: list[tuple[int, int]], others: list[Filled]) -> Gap:
        names = [name for gap in left for name in missing(filled, gap, others, self.names)]
        names = names or self._parts(filled) or self._renamed(filled.name)
        return Gap(filled.name, left == [(0, filled.size)], tuple(dict.fromkeys(names)))

    def _renamed(self, parameter: str) -> list[str]:
        """The checkpoint's name for a parameter, where its neighbours show that it differs."""
        known = [
            (name, writer)
            for name, _, other in self._each()
            if (at := self.writes.of(other)) is not None
            for writer in at[0].regions.values()
            if writer is not None
        ]
        name = renamed(parameter, known)
        return [] if name == parameter or name in self.names else [name]

    def _parts(self, filled: Filled) -> list[str]:
        """The parts of a fused layer that the checkpoint lacks, by the model's own list of what it fuses."""
        base, _, leaf = filled.name.rpartition(".")
        parent, _, fused = base.rpartition(".")
        parts = getattr(self.model, "packed_modules_mapping", {}).get(fused, [])
        writers = [writer for writer, _ in filled.writers().values()]
        known = [(part, writer) for part in parts for writer in writers if f".{part}." in writer]
        if known:
            part, writer = known[0]
            names = [writer.replace(f".{part}.", f".{other}.") for other in parts]
        else:
            names = [name for part in parts for name in self._renamed(f"{parent}.{part}.{leaf}")]
            names = names or [f"{parent}.{part}.{leaf}" for part in parts]
        return [name for name in names if name not in self.names]


def _is_padding(module: Any, parameter: Any, name: str, left: list[tuple[int, int]], raw: bool) -> bool:
    """Whether what was left unwritten is there to round a size up.

    Its maker declares that, or it is the same for every expert, in memory that was zeroed or in a layer
    whose sizes vLLM has rounded up.
    """
    size, item = parameter.numel() * parameter.element_size(), parameter.element_size()
    unwritten = sum(last - first for first, last in left)
    declared = getattr(parameter, "weight_loader_numel", None)
    if declared is not None:
        return bool(size - unwritten >= declared * item)
    if not isinstance(module, RoutedExperts) or parameter.ndim < 3:
        return False
    sizes = module.moe_config
    rounded = (
        sizes.hidden_dim != sizes.hidden_dim_unpadded
        or sizes.intermediate_size_per_partition != sizes.intermediate_size_per_partition_unpadded
    )
    if raw and not rounded:
        return False
    step = size // parameter.shape[0]
    # Gate and up projection are halves of each expert's part.
    halves = 2 if name.rpartition(".")[2].startswith("w13") and sizes.is_act_and_mul else 1
    part = step // halves
    holes: list[list[tuple[int, int]]] = [[] for _ in range(parameter.shape[0] * halves)]
    for first, last in left:
        for number in range(first // part, (last - 1) // part + 1):
            begin = number * part
            holes[number].append((max(first - begin, 0), min(last - begin, part)))
    return all(hole == holes[0] for hole in holes) and (0, part) not in holes[0]
