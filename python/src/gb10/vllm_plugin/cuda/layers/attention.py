"""Attention with one launch between its projection and the attention itself, and one for the output gate.

    vllm::gb10_attention(qkv, positions, out!, layer_name) -> ()

It splits qkv, norms and rotates each head, quantises q where the backend wants that, and writes the KV cache
(``gb10::attention_front``), for any number of tokens; then vLLM's backend runs as it is. Where we do not know
how the backend lays out its cache, k comes out and vLLM's own update writes it. It is an attention operator
for vLLM: it splits piecewise graphs, and is captured where the backend is.

mypy sees vLLM's classes as Any.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from vllm.compilation.breakable_cudagraph import eager_break_during_capture
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention.attention import (
    Attention,
    get_attention_context,
    unified_attention_with_output,
    unified_kv_cache_update,
)
from vllm.model_executor.layers.layernorm import GemmaRMSNorm
from vllm.model_executor.layers.quantization.utils.quant_utils import GroupShape
from vllm.model_executor.layers.rotary_embedding import MRotaryEmbedding, RotaryEmbedding
from vllm.model_executor.layers.rotary_embedding.yarn_scaling_rope import YaRNScalingRotaryEmbedding
from vllm.model_executor.models.qwen3_moe import Qwen3MoeAttention
from vllm.model_executor.models.qwen3_next import Qwen3NextAttention
from vllm.platforms import current_platform
from vllm.utils.torch_utils import (
    LayerNameType,
    _encode_layer_name,
    _resolve_layer_name,
    direct_register_custom_op,
)
from vllm.v1.attention.backend import AttentionType

from gb10.vllm_plugin.cuda import dispatch
from gb10.vllm_plugin.cuda.layers.norm import fits
from gb10.vllm_plugin.cuda.settings import warn_once

LAYERS = (Qwen3NextAttention, Qwen3MoeAttention)
HEAD_SIZES = (64, 128, 256)
LANES = 32
"""Of a head in ``gb10::attention_front``: each has as many numbers, and rotates all of them or none."""

ROPES = (RotaryEmbedding, YaRNScalingRotaryEmbedding, MRotaryEmbedding)
"""What rotates by a row of cosines and sines alone."""

SPLIT_CACHES = ("FLASH_ATTN", "TRITON_ATTN", "FLASHINFER")
"""Backends that hold ``[blocks, kv_heads, block size, 2 * head size]`` (do_kv_cache_update of each)."""

PLAIN_CACHES = ("auto", "bfloat16", "float16", "half", "fp8", "fp8_e4m3")
"""Cache dtypes that our kernel writes."""

_ATTRIBUTE = "gb10_front"
"""Of an attention layer: its Front, or None where vLLM's own forward runs. Of its Attention: the same."""


@dataclass(frozen=True, eq=False)
class Front:
    """What the operator needs of one layer. All sizes are this rank's."""

    attention: Any
    """vLLM's Attention: backend, cache and scales."""

    q_norm: Any
    k_norm: Any
    plus_one: bool
    cos_sin: torch.Tensor
    sections: tuple[int, int]
    """Angles that go by height and by width, where positions have three rows; else 0."""

    gated: bool
    writes: bool
    """Whether our kernel writes the cache."""

    columns: int
    """Of the output."""

    def __call__(self, qkv: torch.Tensor, positions: torch.Tensor, out: torch.Tensor) -> None:
        """qkv: ``[M, columns of the projection]``; out: ``[M, heads * head size]``, written whole."""
        tokens, attention = qkv.shape[0], self.attention
        if tokens == 0:
            return
        name = attention.layer_name
        _, _, cache, slots = get_attention_context(name)
        writes = self.writes and slots is not None
        query = self.new_query(qkv)
        key = None if writes else qkv.new_empty((tokens, attention.num_kv_heads * attention.head_size))
        self.front(qkv, positions, query, key, split_cache(attention, cache) if writes else None, slots)
        dispatch.ran("attention_front", "attention_front", tokens)
        heads = attention.num_kv_heads, attention.head_size
        _, raw, value = qkv.unflatten(1, (-1, heads[1])).tensor_split((-2 * heads[0], -heads[0]), dim=1)
        # Where our kernel has written the cache nobody reads the key.
        key = raw if key is None else key.unflatten(1, heads)
        if not writes:
            unified_kv_cache_update(key, value, name)
        result = out.view(tokens, attention.num_heads, attention.head_size)
        unified_attention_with_output(query.view(result.shape), key, value, result, name)
        if self.gated:
            torch.ops.gb10.attention_gate(result, self.gates(qkv))

    def new_query(self, qkv: torch.Tensor) -> torch.Tensor:
        """Memory for q as the backend wants it."""
        quantised = self.attention.query_quant is not None
        dtype = current_platform.fp8_dtype() if quantised else qkv.dtype
        return torch.empty((qkv.shape[0], self.columns), dtype=dtype, device=qkv.device)

    def front(
        self,
        qkv: torch.Tensor,
        positions: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor | None,
        cache: tuple[torch.Tensor, torch.Tensor] | None,
        slots: torch.Tensor | None,
    ) -> None:
        """Our kernel: ``gb10.kernels.attention_front`` says what it takes."""
        attention = self.attention
        eight = cache is not None and cache[0].dtype != qkv.dtype
        torch.ops.gb10.attention_front(
            qkv,
            self.q_norm.weight,
            self.k_norm.weight,
            self.q_norm.variance_epsilon,
            self.plus_one,
            self.cos_sin,
            positions,
            *(self.sections if positions.dim() == 2 else (0, 0)),
            attention.num_heads,
            attention.num_kv_heads,
            self.gated,
            query,
            key,
            *(cache or (None, None)),
            slots if cache else None,
            None if attention.query_quant is None else attention._q_scale,
            attention._k_scale if eight else None,
            attention._v_scale if eight else None,
        )

    def gates(self, qkv: torch.Tensor) -> torch.Tensor:
        """``[M, heads, head size]``: the second half of each head of q."""
        heads, size = self.attention.num_heads, self.attention.head_size
        return qkv[:, : 2 * heads * size].view(-1, heads, 2, size)[:, :, 1]


def split_cache(attention: Any, cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values ``[blocks, block size, kv_heads, head size]`` of a cache of SPLIT_CACHES."""
    keys, values = cache.transpose(1, 2).split(attention.head_size, dim=-1)
    return keys, values


def _of(layer_name: LayerNameType) -> Front:
    attention = get_forward_context().no_compile_layers[_resolve_layer_name(layer_name)]
    front: Front = getattr(attention, _ATTRIBUTE)
    return front


@eager_break_during_capture  # type: ignore[untyped-decorator]
def _attention(
    qkv: torch.Tensor, positions: torch.Tensor, out: torch.Tensor, layer_name: LayerNameType
) -> None:
    _of(layer_name)(qkv, positions, out)


def _attention_fake(
    qkv: torch.Tensor, positions: torch.Tensor, out: torch.Tensor, layer_name: LayerNameType
) -> None:
    return None


def _writes(attention: Any) -> bool:
    """Whether our kernel may write the cache: its layout and dtype, and nobody else wants the key."""
    return (
        attention.attn_backend.get_name() in SPLIT_CACHES
        and attention.kv_cache_dtype in PLAIN_CACHES
        and attention._k_scale.numel() == 1
        and attention._v_scale.numel() == 1
        and getattr(attention.impl, "dcp_world_size", 1) == 1
    )


def refusal(layer: Any) -> str | None:
    """Why an attention layer keeps vLLM's own forward, or None. The order is that of the surest words."""
    attention, rope = layer.attn, layer.rotary_emb
    dtype, norms = layer.q_norm.weight.dtype, (layer.q_norm, layer.k_norm)
    sections: Any = getattr(rope, "mrope_section", None)
    quantised = attention.query_quant
    unlike = (
        (type(attention) is not Attention, f"a {type(attention).__name__}"),
        (attention.attn_type != AttentionType.DECODER, "an encoder"),
        (attention.kv_sharing_target_layer_name is not None, "a cache of another layer"),
        (attention.attn_backend.forward_includes_kv_cache_update, "a backend that writes the cache itself"),
        (attention.head_size not in HEAD_SIZES, f"heads of {attention.head_size}"),
        (attention.head_size_v != attention.head_size, "values of another size"),
        (bool(layer.dual_chunk_attention_config), "dual chunks"),
        (not all(map(fits, norms)) or type(norms[0]) is not type(norms[1]), "other norms"),
        (dtype not in (torch.bfloat16, torch.float16), f"{dtype}"),
        (type(rope) not in ROPES, f"a {type(rope).__name__}"),
        (not rope.is_neox_style, "a rotary embedding by pairs"),
        (rope.rotary_dim % (2 * attention.head_size // LANES) != 0, f"{rope.rotary_dim} that rotate"),
        (bool(sections) and not (rope.mrope_interleaved and len(sections) == 3), "MRoPE in another order"),
        (rope.cos_sin_cache.dtype != dtype, f"cosines in {rope.cos_sin_cache.dtype}"),
        (
            quantised is not None
            and not (quantised.static and quantised.group_shape == GroupShape.PER_TENSOR),
            "a query with several scales",
        ),
    )
    return next((words for found, words in unlike if found), None)


def prepare(layer: Any, name: str) -> str | None:
    """Give a loaded attention layer its Front; why not, or None."""
    why = refusal(layer)
    if why is not None:
        return why
    sections = getattr(layer.rotary_emb, "mrope_section", None)
    front = Front(
        attention=layer.attn,
        q_norm=layer.q_norm,
        k_norm=layer.k_norm,
        plus_one=isinstance(layer.q_norm, GemmaRMSNorm),
        cos_sin=layer.rotary_emb.cos_sin_cache,
        sections=(sections[1], sections[2]) if sections else (0, 0),
        gated=bool(getattr(layer, "attn_output_gate", False)),
        writes=_writes(layer.attn),
        columns=layer.attn.num_heads * layer.attn.head_size,
    )
    object.__setattr__(layer, _ATTRIBUTE, front)
    object.__setattr__(layer.attn, _ATTRIBUTE, front)
    if not front.writes:
        backend, dtype = layer.attn.attn_backend.get_name(), layer.attn.kv_cache_dtype
        warn_once(f"gb10: attention: vLLM itself writes the KV cache ({backend}, {dtype})")
    return None


def _forward(stock: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def forward(self: Any, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        front = self.gb10_front
        if front is None:
            return stock(self, positions, hidden_states)
        qkv, _ = self.qkv_proj(hidden_states)
        if positions.ndim == 2 and not any(front.sections):
            positions = positions[0]
        # Written whole by the operator; an operator that splits graphs must not make its own result.
        out = qkv.new_empty((qkv.shape[0], front.columns))
        torch.ops.vllm.gb10_attention(qkv, positions, out, _encode_layer_name(self.attn.layer_name))
        output, _ = self.o_proj(out)
        return output  # type: ignore[no-any-return]

    return forward


def install() -> None:
    """Register the operator, and let attention layers that have a Front go through it."""
    direct_register_custom_op("gb10_attention", _attention, mutates_args=["out"], fake_impl=_attention_fake)
    for kind in LAYERS:
        setattr(kind, _ATTRIBUTE, None)
        kind.forward = _forward(kind.forward)
