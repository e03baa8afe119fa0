"""Gated DeltaNet with one projection in, and for decode one launch between the projections.

    vllm::gb10_gdn_in(x, columns, layer_name) -> mixed
    vllm::gb10_gdn_core(mixed, out!, layer_name) -> ()

``mixed`` is ``[M, columns]``: in_proj_qkvz, then in_proj_ba. The second one is an attention operator: it
splits graphs that have prefills, and is captured in graphs of decode batches alone. A batch of one token a
sequence, or of drafts to verify, however many each has, runs ``gb10::gdn_decode``; all others run vLLM's own
kernels on the same inputs.

mypy sees vLLM's classes as Any.
"""

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from vllm.compilation.breakable_cudagraph import eager_break_during_capture
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.mamba.gdn.qwen_gdn_linear_attn import QwenGatedDeltaNetAttention
from vllm.model_executor.layers.mamba.mamba_utils import is_conv_state_dim_first
from vllm.utils.torch_utils import (
    LayerNameType,
    _encode_layer_name,
    _resolve_layer_name,
    direct_register_custom_op,
)

from gb10.vllm_plugin.cuda import dispatch
from gb10.vllm_plugin.cuda.requant.dense import Dense
from gb10.vllm_plugin.cuda.requant.methods import merge
from gb10.vllm_plugin.cuda.settings import Format

logger = logging.getLogger("vllm.gb10")

HEAD_SIZES = (64, 128)
CONV_WIDTH = 4
MAX_STEPS = 8
MOST_ROWS = 512
"""What ``gb10::gdn_decode`` takes: sizes of heads, taps, tokens of a sequence, value rows of a key head."""


LAYERS = (QwenGatedDeltaNetAttention,)

_ATTRIBUTE = "gb10_gdn"
"""Of a GDN layer: its Core, or None where vLLM's own forward runs."""


class Batch(NamedTuple):
    """A batch that ``gb10::gdn_decode`` takes: ``gb10.kernels.gdn_decode`` says what these are."""

    rows: int
    """Of the projection; those after are padding."""

    slots: torch.Tensor
    accepted: torch.Tensor | None = None
    starts: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Core:
    """What the operators need of one layer, beside the layer. All sizes are this rank's."""

    layer: Any
    dense: Dense | None
    """Both projections in as one; None where they stay two layers."""

    key_heads: int
    value_heads: int
    qkv: int
    """Columns of q, k and v together."""

    columns: int
    """Columns of in_proj_qkvz."""

    conv_weight: torch.Tensor
    """``[channels, 4]``."""

    def __call__(self, mixed: torch.Tensor, out: torch.Tensor) -> None:
        """mixed: ``[M, columns + 2 * value_heads]``; out: ``[M, value_heads * dv]``, every row is written."""
        layer = self.layer
        metadata = get_forward_context().attn_metadata
        metadata = metadata.get(layer.prefix) if isinstance(metadata, dict) else None
        batch = None if metadata is None else decode_batch(metadata, mixed.shape[0])
        if batch is None:
            out.zero_()
            others(self, mixed, out)
            if metadata is not None and metadata.num_prefills == 0:
                dispatch.ran("gdn_decode", "vLLM", mixed.shape[0])
            return
        self.decode(mixed[: batch.rows], *states(layer), batch, out[: batch.rows])
        dispatch.ran("gdn_decode", "gdn_decode", batch.rows)
        if batch.rows < out.shape[0]:
            out[batch.rows :].zero_()

    def decode(
        self,
        mixed: torch.Tensor,
        conv: torch.Tensor,
        state: torch.Tensor,
        batch: Batch,
        out: torch.Tensor,
    ) -> None:
        """Our kernel, on ``batch.rows`` rows of ``mixed`` and ``out``; `states` gives the states."""
        layer = self.layer
        torch.ops.gb10.gdn_decode(
            mixed,
            conv,
            self.conv_weight,
            layer.conv1d.bias,
            layer.A_log,
            layer.dt_bias,
            state,
            layer.norm.weight,
            layer.norm.eps,
            batch.slots,
            self.key_heads,
            self.value_heads,
            layer.gqa_interleaved_layout,
            out,
            batch.accepted,
            batch.starts,
        )

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """``mixed`` of ``x`` ``[M, hidden]``."""
        if self.dense is not None:
            return self.dense.forward(x)
        return torch.cat((self.layer.in_proj_qkvz(x)[0], self.layer.in_proj_ba(x)[0]), dim=-1)

    def unpack(self, mixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """``(qkv, z, b, a)`` as vLLM's kernels take them: heads in order, z ``[M, heads, dv]``."""
        layer, tokens = self.layer, mixed.shape[0]
        qkvz, ba = mixed[:, : self.columns], mixed[:, self.columns :]
        if not layer.gqa_interleaved_layout:
            b, a = ba.chunk(2, dim=-1)
            z = qkvz[:, self.qkv :].reshape(tokens, self.value_heads, -1)
            return qkvz[:, : self.qkv], z, b, a
        group = self.value_heads // self.key_heads
        sizes = (layer.head_k_dim, layer.head_k_dim, group * layer.head_v_dim, group * layer.head_v_dim)
        *heads, z = qkvz.view(tokens, self.key_heads, -1).split(sizes, dim=-1)
        b, a = ba.view(tokens, self.key_heads, 2, group).unbind(2)
        qkv, at = mixed.new_empty((tokens, self.qkv)), 0
        for part in heads:
            width = self.key_heads * part.shape[-1]
            qkv[:, at : at + width].view(part.shape).copy_(part)
            at += width
        z = z.reshape(tokens, self.value_heads, layer.head_v_dim)
        return qkv, z, b.reshape(tokens, -1), a.reshape(tokens, -1)


def decode_batch(metadata: Any, rows: int) -> Batch | None:
    """A batch that our kernel takes, None for others.

    It takes one token of each sequence (slots ``[N]``), and drafts that are verified (slots ``[N, T]``, T the
    most), with how many of the last ones were accepted and where each sequence's tokens start: a sequence
    may have fewer, and padding has none. ``rows`` are those of the projection, which vLLM pads in a graph.
    """
    if metadata.num_prefills > 0:
        return None
    if metadata.spec_sequence_masks is None:
        slots = metadata.non_spec_state_indices_tensor
        if metadata.num_decodes == 0 or slots is None:
            return None
        slots = slots[: min(rows, metadata.num_actual_tokens, slots.shape[0])]
        return Batch(slots.shape[0], slots)
    slots = metadata.spec_state_indices_tensor
    sequences, steps = slots.shape
    if metadata.num_decodes > 0 or steps > MAX_STEPS:
        return None
    # With one length for all too: it may be less than there are slots for, and a graph's padding has none.
    return Batch(
        rows,
        slots,
        metadata.num_accepted_tokens[:sequences],
        metadata.spec_query_start_loc[: sequences + 1],
    )


def states(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The convolution's ``[slots, channels, 3 or more]`` and the recurrent one ``[slots, heads, dv, dk]``."""
    conv, state = layer.kv_cache[0], layer.kv_cache[1]
    return conv if is_conv_state_dim_first() else conv.transpose(-1, -2), state


def others(core: Core, mixed: torch.Tensor, out: torch.Tensor) -> None:
    """vLLM's own kernels: prefills, verification of drafts, the profile run (which warms them up)."""
    layer = core.layer
    qkv, z, b, a = core.unpack(mixed)
    layer._forward_core_fused_norm(
        mixed_qkv=qkv,
        b=b.contiguous(),
        a=a.contiguous(),
        output_gate=z,
        core_attn_out=out.view(-1, core.value_heads, layer.head_v_dim),
    )


def _of(layer_name: LayerNameType) -> Core:
    layer = get_forward_context().no_compile_layers[_resolve_layer_name(layer_name)]
    core: Core = getattr(layer, _ATTRIBUTE)
    return core


def _in(x: torch.Tensor, columns: int, layer_name: LayerNameType) -> torch.Tensor:
    return _of(layer_name).project(x)


def _in_fake(x: torch.Tensor, columns: int, layer_name: LayerNameType) -> torch.Tensor:
    return x.new_empty((x.shape[0], columns))


@eager_break_during_capture  # type: ignore[untyped-decorator]
def _core(mixed: torch.Tensor, out: torch.Tensor, layer_name: LayerNameType) -> None:
    _of(layer_name)(mixed, out)


def _core_fake(mixed: torch.Tensor, out: torch.Tensor, layer_name: LayerNameType) -> None:
    return None


def refusal(layer: Any) -> str | None:
    """Why a GDN layer keeps vLLM's own forward, or None."""
    norm, dtype = layer.norm, layer.model_config.dtype
    conv_dtype, state_dtype, *_ = layer.get_state_dtype()
    unlike = (
        (layer.head_k_dim not in HEAD_SIZES or layer.head_v_dim not in HEAD_SIZES, "head sizes"),
        (layer.conv_kernel_size != CONV_WIDTH, f"a convolution over {layer.conv_kernel_size} tokens"),
        (layer.activation != "silu", f"{layer.activation} after the convolution"),
        (norm.activation not in ("silu", "swish"), f"an output gate of {norm.activation}"),
        (norm.group_size is not None or norm.bias is not None, "a norm by groups or with a bias"),
        (layer.num_v_heads % layer.num_k_heads != 0, "value heads without key heads"),
        (layer.num_v_heads // layer.num_k_heads * layer.head_v_dim > MOST_ROWS, "value heads of a key head"),
        (layer.disable_tp_for_ba_proj, "a replicated in_proj_ba"),
        (dtype not in (torch.bfloat16, torch.float16), f"{dtype}"),
        (conv_dtype != dtype, f"a convolution state in {conv_dtype}"),
        (state_dtype not in (torch.bfloat16, torch.float32), f"a state in {state_dtype}"),
        (hasattr(layer, "in_proj_qkv"), "LoRA"),
    )
    return next((words for found, words in unlike if found), None)


def _plain(linear: Any) -> bool:
    return type(linear.quant_method) is UnquantizedLinearMethod and linear.bias is None


def prepare(layer: Any, name: str) -> str | None:
    """Give a loaded GDN layer its Core; why not, or None. Its projections in become views of one matrix."""
    why = refusal(layer)
    if why is not None:
        return why
    both = (layer.in_proj_qkvz, layer.in_proj_ba)
    dense = merge(both)
    if dense is None and all(map(_plain, both)):
        weight = torch.cat([part.weight.data for part in both])
        for part, rows in zip(both, weight.split([part.weight.shape[0] for part in both]), strict=True):
            part.weight.data = rows
        dense = Dense.of(weight, Format.KEEP, name)
    ranks = layer.tp_size
    keys, values = layer.key_dim // ranks, layer.value_dim // ranks
    core = Core(
        layer=layer,
        dense=dense,
        key_heads=layer.num_k_heads // ranks,
        value_heads=layer.num_v_heads // ranks,
        qkv=2 * keys + values,
        columns=2 * keys + 2 * values,
        conv_weight=layer.conv1d.weight.data.view(layer.conv1d.weight.shape[0], CONV_WIDTH),
    )
    object.__setattr__(layer, _ATTRIBUTE, core)
    return None


def _forward(stock: Any) -> Any:
    def forward_cuda(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        core = self.gb10_gdn
        if core is None:
            return stock(self, hidden_states)  # type: ignore[no-any-return]
        name = _encode_layer_name(self.prefix)
        mixed = torch.ops.vllm.gb10_gdn_in(hidden_states, core.columns + 2 * core.value_heads, name)
        # Written whole by the operator; an operator that splits graphs must not make its own result.
        out = mixed.new_empty((mixed.shape[0], core.value_heads * self.head_v_dim))
        torch.ops.vllm.gb10_gdn_core(mixed, out, name)
        output, _ = self.out_proj(out)
        return output  # type: ignore[no-any-return]

    return forward_cuda


def install() -> None:
    """Register the operators, and let GDN layers that have a Core go through them."""
    direct_register_custom_op("gb10_gdn_in", _in, fake_impl=_in_fake)
    direct_register_custom_op("gb10_gdn_core", _core, mutates_args=["out"], fake_impl=_core_fake)
    kind = QwenGatedDeltaNetAttention
    setattr(kind, _ATTRIBUTE, None)
    kind.forward_cuda = _forward(kind.forward_cuda)
