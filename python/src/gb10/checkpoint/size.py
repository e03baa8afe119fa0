"""What a checkpoint needs in memory. All sizes are bytes; its headers and its config say them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gb10.checkpoint.headers import Tensor
from gb10.units import GIB, MIB

OVERHEAD = 2 * GIB
"""vLLM itself: Python, torch, three processes, activations. Measured on the CPU engine: 1.5 GiB."""

KV_CACHE_FLOOR = 64 * MIB
KV_CACHE_CEILING = 4 * GIB
_BF16 = 2


def _is_packed(tensor: Tensor, names: set[str]) -> bool:
    """NVFP4 weights are U8, two values a byte, and have a block scale tensor beside them."""
    return tensor.dtype == "U8" and (f"{tensor.name}_scale" in names or tensor.name.endswith("_packed"))


def weight_bytes(tensors: Iterable[Tensor], mode: str | None) -> int:
    """Bytes of the weights once loaded.

    ``mode`` is a value of GB10_CPU_NVFP4_MODE, or None for a GPU. In ``dequant`` each packed byte
    becomes two BF16 values (factor 4) and the block scales are freed; else weights stay as stored.
    """
    listed = list(tensors)
    names = {tensor.name for tensor in listed}
    if mode != "dequant":
        return sum(tensor.size for tensor in listed)
    total = 0
    for tensor in listed:
        if _is_packed(tensor, names):
            total += tensor.size * 2 * _BF16
        elif not (tensor.name.endswith("_scale") and tensor.dtype == "F8_E4M3"):
            total += tensor.size
    return total


@dataclass(frozen=True)
class CacheShape:
    """Bytes that the KV cache takes: per token of one sequence, and per sequence (GDN states)."""

    per_token: int
    per_sequence: int


def cache_shape(config: dict[str, Any], element: int = _BF16) -> CacheShape:
    """Estimate ``CacheShape`` from a Hugging Face config.json. ``element`` is the size of a value.

    Understands plain attention and the hybrid layout of Qwen3-Next (``layer_types`` or
    ``full_attention_interval``, ``linear_*`` sizes). The states of GDN are BF16 for the convolution
    and FP32 for the recurrence. Unknown fields count as 0.
    """
    text: dict[str, Any] = config.get("text_config") or config

    def number(name: str, default: int = 0) -> int:
        value = text.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    layers = number("num_hidden_layers")
    heads = number("num_attention_heads", 1)
    head_dim = number("head_dim") or number("hidden_size") // max(heads, 1)
    kinds = text.get("layer_types")
    interval = number("full_attention_interval")
    if isinstance(kinds, list):
        linear = sum(1 for kind in kinds if kind == "linear_attention")
    elif interval > 0:
        linear = layers - layers // interval
    else:
        linear = 0
    attention = layers - linear
    per_token = 2 * attention * number("num_key_value_heads", heads) * head_dim * element
    key_heads, value_heads = number("linear_num_key_heads"), number("linear_num_value_heads")
    key_dim, value_dim = number("linear_key_head_dim"), number("linear_value_head_dim")
    channels = 2 * key_heads * key_dim + value_heads * value_dim
    state = (
        channels * max(number("linear_conv_kernel_dim", 4) - 1, 0) * _BF16
        + value_heads * key_dim * value_dim * 4
    )
    return CacheShape(per_token, linear * state)


def kv_cache_bytes(shape: CacheShape, tokens: int, sequences: int, free: int) -> int:
    """KV cache for ``sequences`` sequences of ``tokens`` tokens, within reason.

    A quarter is added for blocks that are only partly full. At least ``KV_CACHE_FLOOR`` and what one
    sequence needs, at most ``KV_CACHE_CEILING`` and a fifth of ``free``; rounded up to a MiB.
    """
    one = shape.per_token * tokens + 4 * shape.per_sequence
    wanted = one * sequences * 5 // 4
    size = max(min(wanted, KV_CACHE_CEILING, free // 5), one * 5 // 4, KV_CACHE_FLOOR)
    return -(-size // MIB) * MIB
