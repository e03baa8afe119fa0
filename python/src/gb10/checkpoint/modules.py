"""The modules of a checkpoint that hold matrices, and what each is for: by the names in its headers.

Without headers (a hub model that is not here yet, ``--load-format dummy``) the names are those that
transformers gives such modules, for the layers that the config counts, and those that the quantisation itself
lists.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gb10.checkpoint.folder import Checkpoint
from gb10.checkpoint.headers import Tensor, read_json
from gb10.errors import UserError

ATTENTION, GDN, MLP, EXPERTS, SHARED = "attention", "gdn", "mlp", "experts", "shared_expert"
HEAD, ROUTER, EMBEDDING, TOWER = "lm_head", "router", "embedding", "tower"

LINEAR = (ATTENTION, GDN, MLP, SHARED, TOWER)
"""Roles whose modules are linear layers; a layer's experts are one, and the head has its own row."""

WEIGHTS = ("weight", "weight_packed", "qweight", "weight_blocks")
"""Last words of the names of tensors that hold a module's matrix."""

_TOWERS = re.compile(r"(^|\.)(visual|vision\w*|audio\w*|multi_modal_projector|mm_projector)(\.|$)")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True)
class Module:
    """One module by its name in the checkpoint; experts of a layer are one. ``draft``: only MTP reads it."""

    name: str
    role: str
    draft: bool = False


def role_of(name: str) -> str:
    """What a module is for, by its name."""
    parts = name.split(".")
    last = parts[-1]
    if _TOWERS.search(name):
        return TOWER
    if last in ("lm_head", "output", "embed_out"):
        return HEAD
    if "embed" in last or last in ("wte", "wpe", "embeddings"):
        return EMBEDDING
    if last in ("gate", "router", "shared_expert_gate"):
        return ROUTER
    if "experts" in parts:
        return EXPERTS
    if any(part.startswith("shared_expert") for part in parts):
        return SHARED
    if {"linear_attn", "mamba"} & set(parts) or ("mixer" in parts and last in ("in_proj", "out_proj")):
        return GDN
    if any("attn" in part or "attention" in part for part in parts) or last in ("q_proj", "k_proj", "v_proj"):
        return ATTENTION
    if "mixer" in parts and last == "o_proj":
        return ATTENTION
    return MLP


def module_of(name: str, layers: int = 0) -> Module:
    """A module of this name. ``layers`` is how many the model has, 0 if unknown; later ones are MTP's."""
    role = role_of(name)
    if role == EXPERTS:
        name = name[: name.index("experts") + len("experts")]
    found = _LAYER.search(name)
    after = found is not None and layers > 0 and int(found[1]) >= layers and role != TOWER
    return Module(name, role, after or name.startswith("mtp.") or ".mtp." in name)


def _matrices(tensors: Iterable[Tensor]) -> Iterator[str]:
    """Modules that hold a matrix. Convolutions of GDN and Mamba are plain in vLLM whatever a config says."""
    for tensor in tensors:
        module, _, leaf = tensor.name.rpartition(".")
        if ".experts." in f".{tensor.name}":
            yield module if leaf in WEIGHTS else tensor.name
        elif leaf in WEIGHTS and len(tensor.shape) == 2 and not module.endswith("conv1d"):
            yield module


def _count(text: dict[str, Any], *keys: str) -> int:
    values = (text.get(key) for key in keys)
    return next((value for value in values if isinstance(value, int) and value > 0), 0)


_MIXERS = {
    "M": ("in_proj", "out_proj"),
    "*": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "-": ("up_proj", "down_proj"),
    "E": ("experts.0.up_proj", "experts.0.down_proj", "shared_experts.up_proj", "shared_experts.down_proj"),
}


def _hybrid(pattern: str) -> Iterator[str]:
    """The names of Nemotron-H, whose config has a letter for each layer."""
    for layer, kind in enumerate(pattern):
        yield from (f"backbone.layers.{layer}.mixer.{part}" for part in _MIXERS.get(kind, ()))
    yield "lm_head"


def _expected(checkpoint: Checkpoint) -> Iterator[str]:
    """Names that transformers gives the modules of such a model."""
    text = checkpoint.text
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        yield from _hybrid(pattern)
        return
    nested = text is not checkpoint.config
    kinds = text.get("layer_types")
    interval = _count(text, "full_attention_interval")
    for layer in range(_count(text, "num_hidden_layers")):
        stem = f"model.{'language_model.' if nested else ''}layers.{layer}"
        linear = kinds[layer : layer + 1] == ["linear_attention"] if isinstance(kinds, list) else False
        if linear or (kinds is None and interval and (layer + 1) % interval):
            fused = ("in_proj_qkvz", "in_proj_ba")
            parts = fused if text.get("model_type") == "qwen3_next" else ("in_proj_qkv", "in_proj_z")
            yield from (f"{stem}.linear_attn.{part}" for part in (*parts, "out_proj"))
        elif _count(text, "kv_lora_rank"):
            query = ("q_a_proj", "q_b_proj") if _count(text, "q_lora_rank") else ("q_proj",)
            parts = (*query, "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
            yield from (f"{stem}.self_attn.{part}" for part in parts)
        else:
            yield from (f"{stem}.self_attn.{part}_proj" for part in "qkvo")
        three = ("gate_proj", "up_proj", "down_proj")
        if checkpoint.experts and layer >= _count(text, "first_k_dense_replace"):
            yield from (f"{stem}.mlp.experts.0.{part}" for part in three)
            if _count(text, "n_shared_experts"):
                yield from (f"{stem}.mlp.shared_experts.{part}" for part in three)
            elif _count(text, "shared_expert_intermediate_size"):
                yield from (f"{stem}.mlp.shared_expert.{part}" for part in three)
        else:
            yield from (f"{stem}.mlp.{part}" for part in three)
    yield "lm_head"


def sections(checkpoint: Checkpoint) -> Iterator[dict[str, Any]]:
    """What a checkpoint says of its quantisation, in the order in which vLLM looks.

    ModelOpt's older side file is the last. One that cannot be read is none here: vLLM says what is wrong.
    """
    for config in (checkpoint.config, checkpoint.text):
        for key in ("quantization_config", "compression_config"):
            if isinstance(config.get(key), dict):
                yield config[key]
    side = None if checkpoint.folder is None else checkpoint.folder / "hf_quant_config.json"
    if side is not None and side.exists():
        with suppress(UserError):
            yield read_json("quantisation config", side)


def _listed(checkpoint: Checkpoint) -> Iterator[str]:
    """Names that a quantisation lists one by one: ``quantized_layers``, and paths among ``targets``."""
    section = next(sections(checkpoint), {})
    for part in (section, section.get("quantization")):
        layers = part.get("quantized_layers") if isinstance(part, dict) else None
        yield from (str(name) for name in layers) if isinstance(layers, dict) else ()
    groups = section.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        targets = group.get("targets") if isinstance(group, dict) else None
        for target in targets if isinstance(targets, list) else ():
            if isinstance(target, str) and ("." in target or target == "lm_head") and target[:3] != "re:":
                yield target


def modules_of(checkpoint: Checkpoint) -> tuple[Module, ...]:
    """All modules with matrices, in the order of the files; embeddings are left out, they are lookups."""
    if checkpoint.tensors:
        names: Iterable[str] = _matrices(checkpoint.tensors)
    else:
        names = (*_listed(checkpoint), *_expected(checkpoint))
    layers = _count(checkpoint.text, "num_hidden_layers")
    found = (module_of(name, layers) for name in names)
    return tuple(dict.fromkeys(module for module in found if module.role != EMBEDDING))
