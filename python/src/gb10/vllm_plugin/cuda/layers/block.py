"""The second half of a decoder layer in one operator: residual, norm, router, experts.

    vllm::gb10_experts(hidden_states, residual, layer_name) -> (output, residual)

Up to 16 tokens that is one launch of ``gb10::route_experts`` and the experts'; for more, the parts of vLLM's
router and ours of the experts. The operator is opaque to torch.compile, so that it may choose by the number
of tokens. It can be captured in every CUDA graph.

mypy sees vLLM's classes as Any.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.fused_moe.router.fused_topk_router import FusedTopKRouter
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm
from vllm.model_executor.models.qwen3_moe import Qwen3MoeDecoderLayer, Qwen3MoeSparseMoeBlock
from vllm.model_executor.models.qwen3_next import Qwen3NextDecoderLayer, Qwen3NextSparseMoeBlock
from vllm.utils.torch_utils import (
    LayerNameType,
    _encode_layer_name,
    _resolve_layer_name,
    direct_register_custom_op,
)

from gb10.kernels.moe_router import Routed, workspace_bytes
from gb10.vllm_plugin.cuda import dispatch
from gb10.vllm_plugin.cuda.experts import Experts, experts_of
from gb10.vllm_plugin.cuda.layers import norm as norms
from gb10.vllm_plugin.cuda.settings import DECODE

logger = logging.getLogger("vllm.gb10")

MOE_BLOCKS = (Qwen3NextSparseMoeBlock, Qwen3MoeSparseMoeBlock)
ROUTERS: tuple[type, ...] = (FusedTopKRouter,)
"""Top-k of a softmax over all experts."""

_ATTRIBUTE = "gb10_block"
"""Of a decoder layer: its Block, or None where vLLM's own forward runs. Of the runner: the same Block."""


@dataclass(frozen=True, eq=False)
class Block:
    """What the operator needs of one layer; H hidden size, E experts."""

    name: str
    """The runner's name in vLLM's forward context."""

    runner: Any
    experts: Experts
    norm_weight: torch.Tensor
    """``[H]``; the norm multiplies by it, or with ``plus_one`` by 1 more."""

    plus_one: bool
    epsilon: float
    gate_weight: torch.Tensor
    """``[E, H]``."""

    shared_gate_weight: torch.Tensor | None
    """``[1, H]``, where there is a shared expert."""

    workspace: torch.Tensor
    """Of ``gb10::route_experts``: uint8, zero between calls."""

    reduces: bool
    """Whether each rank has a part of the sum."""

    def __call__(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x, residual: ``[M, H]``; the layer's output and the new residual, both new."""
        x, residual = x.contiguous(), residual.contiguous()
        out = torch.empty_like(x)
        if x.shape[0] == 0:
            return out, residual.clone()
        routed = self.choose(x, residual)
        self.experts.forward(routed.normed, routed.ids, routed.weights, routed.shared_multiplier, out)
        assert routed.residual is not None
        return out, routed.residual

    def choose(self, x: torch.Tensor, residual: torch.Tensor) -> Routed:
        """Residual, norm, router and top-k."""
        return (self._route if x.shape[0] <= DECODE else self._route_many)(x, residual)

    def _route(self, x: torch.Tensor, residual: torch.Tensor) -> Routed:
        router, tokens = self.runner.router, x.shape[0]
        normed, residual_out = torch.empty_like(x), torch.empty_like(x)
        ids = torch.empty((tokens, router.top_k), dtype=torch.int32, device=x.device)
        weights = torch.empty((tokens, router.top_k), dtype=torch.float32, device=x.device)
        multiplier = None
        if self.shared_gate_weight is not None:
            multiplier = torch.empty(tokens, dtype=torch.float32, device=x.device)
        torch.ops.gb10.route_experts(
            x,
            residual,
            self.norm_weight,
            self.epsilon,
            self.plus_one,
            self.gate_weight,
            self.shared_gate_weight,
            router.renormalize,
            self.workspace,
            ids,
            weights,
            multiplier,
            normed,
            residual_out,
        )
        dispatch.ran("router", "route_experts", tokens)
        if router.capture_fn is not None:
            router.capture_fn(ids)
        if router._routing_replay_out is not None:
            router._routing_replay_out[:tokens].copy_(ids)
        return Routed(ids, weights, multiplier, normed, residual_out)

    def _route_many(self, x: torch.Tensor, residual: torch.Tensor) -> Routed:
        runner = self.runner
        normed, residual_out = norms.add_norm(x, residual, self.norm_weight, self.epsilon, self.plus_one)
        logits, _ = runner.gate(normed)
        weights, ids = runner.router.select_experts(
            hidden_states=normed, router_logits=logits, topk_indices_dtype=torch.int32
        )
        multiplier = None
        if self.shared_gate_weight is not None:
            multiplier = F.linear(normed, self.shared_gate_weight).float().sigmoid().reshape(-1)
        dispatch.ran("router", "vLLM", x.shape[0])
        return Routed(ids, weights, multiplier, normed, residual_out)


def _experts(
    hidden_states: torch.Tensor, residual: torch.Tensor, layer_name: LayerNameType
) -> tuple[torch.Tensor, torch.Tensor]:
    runner = get_forward_context().no_compile_layers[_resolve_layer_name(layer_name)]
    block: Block = getattr(runner, _ATTRIBUTE)
    return block(hidden_states, residual)


def _experts_fake(
    hidden_states: torch.Tensor, residual: torch.Tensor, layer_name: LayerNameType
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(hidden_states), torch.empty_like(residual)


def _second_half(
    block: Block, hidden_states: torch.Tensor, residual: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator, and what several ranks add to it. Traced."""
    out, residual = torch.ops.vllm.gb10_experts(hidden_states, residual, _encode_layer_name(block.name))
    if block.reduces:
        out = tensor_model_parallel_all_reduce(out)
    return out, residual


def refusal(layer: Any) -> str | None:
    """Why a decoder layer keeps vLLM's own forward, or None. The order is that of the surest words."""
    block = layer.mlp
    if type(block) not in MOE_BLOCKS:
        return "no experts"
    runner, config = block.experts, block.experts.moe_config
    router, norm, gate = runner.router, layer.post_attention_layernorm, block.gate
    hidden, experts = config.hidden_dim, config.num_experts
    parallel = config.moe_parallel_config
    unlike = (
        (bool(getattr(layer, "layer_scale", False)), "a layer scale"),
        (block.is_sequence_parallel, "sequence parallel"),
        (getattr(layer, "use_attn_reduce_scatter_for_moe", False), "sequence parallel"),
        (getattr(block, "replicate_shared_expert", False), "a replicated shared expert"),
        (runner.shared_expert_gate is not None, "a shared expert among the routed ones"),
        (block.enable_eplb, "expert load balancing"),
        (parallel.dp_size > 1 or parallel.pcp_size > 1, "data or context parallel"),
        (runner.enable_dbo, "overlapped batches"),
        (config.is_lora_enabled, "LoRA"),
        (type(router) not in ROUTERS, f"a {type(router).__name__}"),
        (getattr(router, "scoring_func", "") != "softmax", "scores that are no softmax"),
        (runner.routed_scaling_factor != 1.0, "a scale of the experts' output"),
        (runner.routed_input_transform is not None, "latent experts"),
        (type(norm) not in (GemmaRMSNorm, RMSNorm), f"a {type(norm).__name__}"),
        (getattr(norm, "variance_size_override", None) is not None, "a norm over a part"),
        (gate.bias is not None or not gate.is_unquantized, "a router with a bias or in a quantised format"),
        (hidden != norm.weight.shape[0], "a padded hidden size"),
        (hidden % 256 != 0 or hidden > 8192, f"a hidden size of {hidden}"),
        (experts > 1024 or config.experts_per_token > 32, f"{experts} experts"),
    )
    return next((words for found, words in unlike if found), None)


def prepare(layer: Any, name: str) -> str | None:
    """Give a loaded decoder layer its Block; why not, or None. Allocates the router's workspace."""
    why = refusal(layer)
    if why is not None:
        return why
    moe, norm = layer.mlp, layer.post_attention_layernorm
    runner = moe.experts
    experts = experts_of(runner)
    if experts is None:
        return "experts that are not NVFP4"
    gate = moe.gate.weight.data
    if gate.dtype not in (torch.bfloat16, torch.float16) or gate.dtype != norm.weight.dtype:
        return f"a router in {gate.dtype}, a norm in {norm.weight.dtype}"
    shared = moe.shared_expert_gate if moe.shared_expert is not None else None
    config = runner.moe_config
    block = Block(
        name=runner.layer_name,
        runner=runner,
        experts=experts,
        norm_weight=norm.weight.data,
        plus_one=isinstance(norm, GemmaRMSNorm),
        epsilon=norm.variance_epsilon,
        gate_weight=gate.contiguous(),
        shared_gate_weight=None if shared is None else shared.weight.data.contiguous(),
        workspace=torch.zeros(workspace_bytes(DECODE, gate.shape[0]), dtype=torch.uint8, device=gate.device),
        reduces=(config.tp_size > 1 or config.ep_size > 1) and not config.skip_final_all_reduce,
    )
    object.__setattr__(layer, _ATTRIBUTE, block)
    object.__setattr__(runner, _ATTRIBUTE, block)
    return None


def _qwen3_next(stock: Any) -> Any:
    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        positions: torch.Tensor,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.gb10_block is None:
            return stock(self, hidden_states, residual, positions, **kwargs)  # type: ignore[no-any-return]
        hidden_states, residual = norms.input_norm(self, hidden_states, residual)
        if self.layer_type == "linear_attention":
            hidden_states = self.linear_attn(hidden_states=hidden_states)
        else:
            hidden_states = self.self_attn(hidden_states=hidden_states, positions=positions)
        return _second_half(self.gb10_block, hidden_states, residual)

    return forward


def _qwen3_moe(stock: Any) -> Any:
    def forward(
        self: Any, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.gb10_block is None:
            return stock(self, positions, hidden_states, residual)  # type: ignore[no-any-return]
        hidden_states, residual = norms.input_norm(self, hidden_states, residual)
        hidden_states = self.self_attn(positions=positions, hidden_states=hidden_states)
        return _second_half(self.gb10_block, hidden_states, residual)

    return forward


DECODER_LAYERS = (Qwen3NextDecoderLayer, Qwen3MoeDecoderLayer)
"""And what derives from them: Qwen3.5's."""


def install() -> None:
    """Register the operator, and let decoder layers that have a Block go through it."""
    direct_register_custom_op(
        "gb10_experts",
        _experts,
        fake_impl=_experts_fake,
        tags=(torch.Tag.needs_fixed_stride_order,),
    )
    for kind, made in zip(DECODER_LAYERS, (_qwen3_next, _qwen3_moe), strict=True):
        setattr(kind, _ATTRIBUTE, None)
        setattr(kind, norms.ATTRIBUTE, False)
        kind.forward = made(kind.forward)
