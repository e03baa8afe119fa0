"""What a checkpoint needs in memory. All sizes are bytes; its headers and its config say them.

vLLM would tell the cache's size exactly, once it has built the model; here it is wanted before vLLM is
imported. tests/unit/checkpoint/test_size_vllm.py holds these figures against the specs of vLLM's own layers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeGuard

from gb10.checkpoint.headers import Tensor
from gb10.checkpoint.inventory import BLOCK
from gb10.checkpoint.modules import EMBEDDING, EXPERTS, TOWER, module_of
from gb10.units import GIB, MIB

OVERHEAD = 2 * GIB
"""vLLM itself: Python, torch, three processes, activations. Measured on the CPU engine: 1.5 GiB."""

KV_CACHE_FLOOR = 64 * MIB
KV_CACHE_CEILING = 4 * GIB
_BF16, _FP32 = 2, 4
_STORED = {"BF16": 2, "F16": 2, "F32": 4}
"""Bytes of a value in the file, of the types that vLLM turns into the model's own type."""

_LARGEST, _MOST_LAYERS = 1 << 40, 1 << 16
"""Larger numbers are faults in a file."""

_IN_FLIGHT = 8192
"""Tokens that one step may add to a sequence before vLLM frees what has left a sliding window: the largest of
its defaults for ``max_num_batched_tokens`` (engine/arg_utils.py)."""

_STATES = 4
"""States of a sequence that vLLM keeps for each recurrent layer with prefix caching: the running one, the
last whole block's, and up to two drafts' (``MambaSpec.max_memory_usage_bytes``)."""


def _is_packed(tensor: Tensor, names: set[str]) -> bool:
    """NVFP4 weights are U8, two values a byte, and have a block scale tensor beside them."""
    return tensor.dtype == "U8" and (f"{tensor.name}_scale" in names or tensor.name.endswith("_packed"))


def requantised_bytes(tensor: Tensor, form: str) -> int:
    """Bytes of a matrix ``[N, K]`` as ``form``: fp8 with a scale a row, or nvfp4."""
    rows, columns = tensor.shape
    if form == "fp8":
        return rows * columns + rows * _FP32
    return rows * columns // 2 + rows * columns // BLOCK + _FP32


def weight_bytes(
    tensors: Iterable[Tensor],
    mode: str | None,
    element: int = _BF16,
    formats: Mapping[Tensor, str] = MappingProxyType({}),
) -> int:
    """Bytes of the weights once loaded. ``formats``: what some become at load (fp8, nvfp4).

    ``mode`` is a value of GB10_CPU_NVFP4_MODE, or None for a GPU; ``element`` is the size of a value of the
    model's type (``--dtype``). Matrices of floating point are loaded as that type. In ``dequant`` each packed
    byte becomes two values of it and the block scales are freed; else packed weights stay as stored.
    """
    listed = list(tensors)
    names = {tensor.name for tensor in listed}
    made = {tensor.name: requantised_bytes(tensor, form) for tensor, form in formats.items()}
    total = 0
    for tensor in listed:
        if tensor.name in made:
            total += made[tensor.name]
        elif mode == "dequant" and _is_packed(tensor, names):
            total += tensor.size * 2 * element
        elif mode == "dequant" and tensor.name.endswith("_scale") and tensor.dtype == "F8_E4M3":
            continue
        elif tensor.dtype in _STORED and len(tensor.shape) > 1:
            total += tensor.size * element // _STORED[tensor.dtype]
        else:
            total += tensor.size
    return total


def decoded_token_bytes(
    tensors: Iterable[Tensor],
    config: dict[str, Any],
    element: int = _BF16,
    formats: Mapping[Tensor, str] = MappingProxyType({}),
) -> int:
    """Bytes of weights that one sequence's next token reads on a GPU; ``weight_bytes`` says the rest.

    Of routed experts that is the share of the chosen ones. Embeddings are looked up (a tied one is the head
    too), and MTP's layers and towers for images do not run.
    """
    read = _Config(config)
    layers = read.number("num_hidden_layers")
    experts = read.number("num_experts", "num_local_experts", "n_routed_experts")
    chosen = read.number("num_experts_per_tok", "num_experts_per_token", default=experts)
    tied = read.text.get("tie_word_embeddings") is True
    always: list[Tensor] = []
    routed: list[Tensor] = []
    for tensor in tensors:
        module = module_of(tensor.name.rpartition(".")[0], layers)
        if module.draft or module.role == TOWER or (module.role == EMBEDDING and not tied):
            continue
        (routed if module.role == EXPERTS else always).append(tensor)
    share = weight_bytes(routed, None, element, formats)
    return weight_bytes(always, None, element, formats) + (share * chosen // experts if experts else share)


@dataclass(frozen=True)
class CacheShape:
    """Bytes that the KV cache takes.

    ``per_token`` of one sequence, in the layers that keep all tokens; ``per_sequence`` for the states of
    recurrent layers (GDN, Mamba, short convolutions); ``per_window_token`` in the layers that keep the last
    ``window`` tokens only.
    """

    per_token: int
    per_sequence: int
    per_window_token: int = 0
    window: int = 0

    def sequence(self, tokens: int) -> int:
        """Bytes of one sequence of ``tokens`` tokens."""
        kept = min(tokens, self.window + _IN_FLIGHT)
        return self.per_token * tokens + self.per_window_token * kept + _STATES * self.per_sequence

    def tokens(self, size: int) -> int:
        """The longest sequence that ``size`` bytes have room for, 0 for none; unknown shapes hold any."""
        low, high = 0, 1 << 40
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.sequence(middle) <= size else (low, middle - 1)
        return low


class _Config:
    """Reads numbers of a config.json, whatever else stands there."""

    def __init__(self, config: dict[str, Any]) -> None:
        nested = config.get("text_config")
        self.text: dict[str, Any] = nested if isinstance(nested, dict) else config

    def number(self, *names: str, default: int = 0) -> int:
        """The first of these that is a number above 0."""
        found = (self.text.get(name) for name in names)
        return next((value for value in found if _is_count(value)), default)

    def items(self, *names: str) -> list[Any]:
        """The first of these that is a list, or a text as a list of its letters."""
        found = (self.text.get(name) for name in names)
        return next((list(value) for value in found if isinstance(value, list | str)), [])

    def section(self, name: str) -> "_Config":
        """An object inside; an empty one where there is none."""
        value = self.text.get(name)
        return _Config(value if isinstance(value, dict) else {})


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= _LARGEST


_ATTENTION = frozenset({"*", "attention", "full_attention", "hybrid"})
_WINDOWED = frozenset({"sliding_attention", "chunked_attention"})
_RECURRENT = frozenset({"M", "mamba", "linear_attention", "conv", "hybrid"})
"""Words for layers in configs; "hybrid" has both kinds side by side. What is in none has neither."""


def _layers(config: _Config) -> list[str]:
    """A word for each layer, as ``layer_types`` of a config has them."""
    count = min(config.number("num_hidden_layers"), _MOST_LAYERS)
    listed = config.items("layer_types", "layers_block_type", "hybrid_override_pattern")
    if listed:
        return [word for word in listed if isinstance(word, str)][: count or None]
    indices = config.items("attn_layer_indices")
    kimi = config.section("linear_attn_config").items("full_attn_layers")
    period, offset = config.number("attn_layer_period"), config.number("attn_layer_offset")
    interval = config.number("full_attention_interval")
    pattern = config.number("sliding_window_pattern", "_sliding_window_pattern")
    windowed = config.number("sliding_window") and config.text.get("use_sliding_window") is not False

    def word(layer: int) -> str:
        if indices or kimi:
            return "attention" if layer in indices or layer + 1 in kimi else "mamba"
        if period:
            return "attention" if layer % period == offset else "mamba"
        if interval:
            return "full_attention" if (layer + 1) % interval == 0 else "linear_attention"
        if windowed and not (pattern and (layer + 1) % pattern == 0):
            return "sliding_attention"
        # Falcon-H1 has no list: each of its layers has both.
        return "hybrid" if config.number("mamba_d_ssm") else "attention"

    return [word(layer) for layer in range(count)]


def _state(config: _Config) -> int:
    """Bytes of one recurrent layer's state for one sequence: the convolution's BF16, the recurrence FP32.

    The shapes are those of vLLM's MambaStateShapeCalculator; the spellings are those of the models.
    """
    hidden = config.number("hidden_size")
    kda = config.section("linear_attn_config")
    if value_heads := config.number("linear_num_value_heads"):
        key_heads = config.number("linear_num_key_heads")
        key, value = config.number("linear_key_head_dim"), config.number("linear_value_head_dim")
        channels = 2 * key_heads * key + value_heads * value
        recurrence = value_heads * key * value
        kernel = config.number("linear_conv_kernel_dim", default=4)
    elif heads := kda.number("num_heads"):
        size = kda.number("head_dim")
        channels, recurrence = 3 * heads * size, heads * size * size
        kernel = kda.number("short_conv_kernel_size", default=4)
    elif kernel := config.number("conv_L_cache"):
        channels, recurrence = config.number("conv_dim", default=hidden), 0
    else:
        kernel = config.number("conv_kernel", "mamba_d_conv", "conv_kernel_size", default=4)
        state = config.number("ssm_state_size", "mamba_d_state", "state_size")
        if not state:
            return 0
        heads = config.number("mamba_num_heads", "mamba_n_heads", "n_mamba_heads")
        inner = config.number("mamba_d_ssm") or hidden * config.number("mamba_expand", "expand", default=2)
        inner = heads * config.number("mamba_head_dim", "mamba_d_head", "mamba_headdim") or inner
        groups = config.number("n_groups", "mamba_n_groups", "mamba_ngroups", default=1) if heads else 0
        channels, recurrence = inner + 2 * groups * state, inner * state
    return channels * (kernel - 1) * _BF16 + recurrence * _FP32


def cache_shape(config: dict[str, Any], element: int = _BF16, ranks: int = 1) -> CacheShape:
    """Estimate ``CacheShape`` from a Hugging Face config.json; unknown fields count as 0.

    ``element`` is the size of a value, ``ranks`` over how many the heads are split. Understands plain
    attention, MLA (one latent and one rotary part for all heads), sliding windows, layers that share another
    one's cache, and the hybrids of vLLM.
    """
    read = _Config(config)
    layers = _layers(read)
    shared = read.number("num_kv_shared_layers")
    kept = layers[: len(layers) - shared] if shared < len(layers) else layers
    heads = read.number("num_attention_heads", default=1)
    size = read.number("head_dim", "attention_head_dim") or read.number("hidden_size") // heads
    kv_heads = read.number("num_key_value_heads", "num_kv_heads", "n_head_kv", default=heads)
    full_size, full_heads = read.number("global_head_dim", default=size), kv_heads
    if read.text.get("attention_k_eq_v") is True:
        full_heads = read.number("num_global_key_value_heads", default=kv_heads)

    def of(count: int, length: int) -> int:
        return 2 * max(count // ranks, 1) * length * element

    per_layer, per_window_layer = of(full_heads, full_size), of(kv_heads, size)
    latent = read.number("kv_lora_rank")
    # MiniCPM3 computes its keys and values out of the latent and keeps those.
    if latent and read.text.get("model_type") != "minicpm3":
        index = read.number("index_head_dim")
        per_layer = (latent + read.number("qk_rope_head_dim")) * element + (index + 4 if index else 0)
    return CacheShape(
        sum(word in _ATTENTION for word in kept) * per_layer,
        sum(word in _RECURRENT for word in layers) * _state(read) // ranks,
        sum(word in _WINDOWED for word in kept) * per_window_layer,
        read.number("sliding_window", "attention_chunk_size"),
    )


def kv_cache_bytes(shape: CacheShape, tokens: int, sequences: int, free: int, left: int | None = None) -> int:
    """KV cache for ``sequences`` sequences of ``tokens`` tokens, within reason.

    A quarter is added for blocks that are only partly full. At least ``KV_CACHE_FLOOR`` and what one
    sequence needs; beyond that at most ``KV_CACHE_CEILING``, a fifth of ``free``, and ``left``, what the
    weights leave of it. Rounded up to a MiB.
    """
    one = shape.sequence(tokens) * 5 // 4
    most = min(KV_CACHE_CEILING, free // 5, free if left is None else left)
    size = max(min(one * sequences, most), one, KV_CACHE_FLOOR)
    return -(-size // MIB) * MIB
