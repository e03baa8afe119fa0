"""The weights a token reads, counted from the tensors that the loaded model holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

_COMPONENTS = (
    ("shared_expert_gate", "shared expert gate"),
    ("shared", "shared expert"),
    ("expert", "routed experts"),
    ("mlp.gate", "router"),
    ("router", "router"),
    ("in_proj_qkvz", "GDN in_proj_qkvz"),
    ("in_proj_ba", "GDN in_proj_ba"),
    ("in_proj", "GDN in_proj"),
    ("linear_attn.out_proj", "GDN out_proj"),
    ("conv1d", "GDN conv"),
    ("linear_attn", "GDN rest"),
    ("qkv_proj", "attention qkv"),
    ("o_proj", "attention o_proj"),
    ("embed_tokens", "embedding"),
    ("lm_head", "lm_head"),
    ("norm", "norms"),
)
REST = "rest"
_NOT_WEIGHTS = ("cos_sin", "kv_cache", "workspace", "scratch", "buffer", "expert_map", "impl")
_DEEPEST = 6


@dataclass(frozen=True)
class Component:
    """Part of a model: bytes it takes on the device, bytes of them that one token reads, by element type."""

    name: str
    loaded: int
    read: float
    dtypes: dict[str, int]


def component_of(path: str) -> str:
    """Which part of a model the tensor at ``path`` belongs to."""
    if path.endswith(".gate.weight"):
        return "router"
    return next((name for key, name in _COMPONENTS if key in path), REST)


def components(model: torch.nn.Module, config: Any, device: str) -> list[Component]:
    """All parts of ``model`` on ``device`` (a type, such as "cuda"), the most read first.

    A storage counts once. Of routed experts a token reads top-k of all, of the embedding one row; of all else
    everything. A copy that a model keeps and does not read is not told apart: it shows as too much.
    """
    loaded: dict[str, int] = defaultdict(int)
    read: dict[str, float] = defaultdict(float)
    dtypes: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    seen: set[int] = set()
    experts = getattr(config, "num_experts", 0) or 0
    for path, tensor in _tensors(model):
        storage = tensor.untyped_storage()
        if tensor.device.type != device or not storage.nbytes() or storage.data_ptr() in seen:
            continue
        seen.add(storage.data_ptr())
        name, size = component_of(path), storage.nbytes()
        loaded[name] += size
        dtypes[name][str(tensor.dtype).removeprefix("torch.")] += size
        if name == "routed experts" and experts:
            read[name] += size * config.num_experts_per_tok / experts
        elif name == "embedding":
            read[name] += size / config.vocab_size
        else:
            read[name] += size
    parts = [Component(name, loaded[name], read[name], dict(dtypes[name])) for name in loaded]
    return sorted(parts, key=lambda part: -part.read)


def state_bytes(config: Any, element: int) -> int:
    """Bytes of GDN state that one token reads and writes; ``element`` is the size of a number of it."""
    interval = getattr(config, "full_attention_interval", 0)
    if not interval:
        return 0
    layers = config.num_hidden_layers - config.num_hidden_layers // interval
    numbers = config.linear_num_value_heads * config.linear_value_head_dim * config.linear_key_head_dim
    return int(2 * layers * numbers * element)


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that a module holds: parameters and buffers, then those inside of what gb10 hung on it."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not any(word in name for word in _NOT_WEIGHTS):
            yield name, tensor
    visited: set[int] = set()
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if not key.startswith(("_parameters", "_buffers", "_modules")):
                yield from _inside(f"{name}.{key}", value, visited, 0)


def _inside(path: str, value: Any, visited: set[int], depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    if any(word in path for word in _NOT_WEIGHTS):
        return
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    if depth == _DEEPEST or id(value) in visited:
        return
    inner: Mapping[Any, Any] = {}
    if isinstance(value, Mapping):
        inner = value
    elif isinstance(value, list | tuple):
        inner = dict(enumerate(value))
    elif is_dataclass(value) and not isinstance(value, type):
        inner = {each.name: getattr(value, each.name, None) for each in fields(value)}
    elif type(value).__module__.startswith("gb10.") and not isinstance(value, torch.nn.Module | type):
        inner = getattr(value, "__dict__", {})
    if inner:
        visited.add(id(value))
        for key, each in inner.items():
            yield from _inside(f"{path}.{key}", each, visited, depth + 1)
