"""Experts classes for vLLM's modular MoE kernels, and how they run ours.

mypy sees vLLM's classes as Any.
"""

from typing import Any

import torch
import vllm.model_executor.layers.fused_moe.modular_kernel as mk
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig
from vllm.model_executor.layers.fused_moe.experts.cutlass_moe import CutlassExpertsFp4
from vllm.model_executor.layers.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceNoOP
from vllm.model_executor.layers.quantization.utils.quant_utils import QuantKey, kNvfp4Dynamic, kNvfp4Static
from vllm.platforms import current_platform

from gb10.kernels import moe_decode, moe_grouped
from gb10.kernels.moe_decode import Options, SharedExpert, option_arguments
from gb10.vllm_plugin.cuda import dispatch
from gb10.vllm_plugin.cuda.experts import workspace
from gb10.vllm_plugin.cuda.settings import DECODE

OPERATION = "nvfp4_moe"
"""Of the routing table."""

MOST_TOKENS = 8192
"""Of one call of `moe_grouped`: its workspace grows with them, and 8192 have enough for each expert."""

_UNIT, _MOST_WIDTH, _MOST_EXPERTS, _MOST_TOPK = 64, 32768, 8192, 32
_ACTIVATIONS = (MoEActivation.SILU, MoEActivation.GELU, MoEActivation.GELU_TANH)


def refusal(config: FusedMoEConfig) -> str | None:
    """Why our kernels cannot run a layer, or None."""
    widths = (config.hidden_dim, config.intermediate_size_per_partition)
    if config.activation not in _ACTIVATIONS:
        return f"{config.activation.value} activations"
    if any(value is not None for value in (config.swiglu_limit, config.swiglu_alpha, config.swiglu_beta)):
        return "a SwiGLU with a limit or other numbers"
    if config.has_bias:
        return "biases"
    if any(width % _UNIT or not 0 < width <= _MOST_WIDTH for width in widths):
        return f"hidden and intermediate size {widths[0]} and {widths[1]}, not multiples of {_UNIT}"
    if config.experts_per_token > _MOST_TOPK or config.num_local_experts > _MOST_EXPERTS:
        return f"{config.num_local_experts} experts, {config.experts_per_token} a token"
    if config.in_dtype not in (torch.bfloat16, torch.float16):
        return f"{config.in_dtype} activations"
    return None


class _Decode:
    """What both classes share. `prepare` is called with the loaded layer."""

    moe_config: FusedMoEConfig
    swizzled: bool
    grouped: bool
    """Whether `run` takes any number of tokens, else `DECODE`."""

    weights: tuple[torch.Tensor, ...] = ()
    """w13, its block scales and global scales, w2, and its; as `gb10.kernels.moe_decode` takes them."""

    @staticmethod
    def _supports_parallel_config(parallel: FusedMoEParallelConfig) -> bool:
        return not parallel.use_all2all_kernels

    def prepare(self, w13_global: torch.Tensor, w2_global: torch.Tensor, layer: Any, scales: Any) -> None:
        """Remember the weights, and reserve the workspace."""
        self.weights = tuple(
            tensor.data.contiguous()
            for tensor in (layer.w13_weight, scales[0], w13_global, layer.w2_weight, scales[1], w2_global)
        )
        self.reserve(0)

    def sizes(self, tokens: int, topk: int, shared: int) -> int:
        """Bytes of workspace for so many tokens; ``shared`` is the shared expert's intermediate size."""
        w13, w2 = self.weights[0], self.weights[3]
        if tokens <= DECODE:
            return moe_decode.workspace_bytes(tokens, topk, 2 * w2.shape[-1], shared)
        return moe_grouped.workspace_bytes(
            tokens, topk, w2.shape[0], 2 * w13.shape[-1], 2 * w2.shape[-1], shared
        )

    def reserve(self, shared: int) -> None:
        """Have the workspace for the most tokens that vLLM may give."""
        config = get_current_vllm_config_or_none()
        most = config.scheduler_config.max_num_batched_tokens if config is not None else DECODE
        tokens = min(most or DECODE, MOST_TOKENS if self.grouped else DECODE)
        topk = self.moe_config.experts_per_token
        size = max(self.sizes(count, topk, shared) for count in {min(DECODE, tokens), tokens})
        workspace.reserve(self.weights[0].device, size)

    def run(
        self,
        x: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        out: torch.Tensor,
        expert_map: torch.Tensor | None = None,
        shared: SharedExpert | None = None,
    ) -> None:
        """Write the layer's output for ``x`` ``[M, H]`` into ``out``; `gb10.kernels.moe_decode` says how."""
        x, topk_ids = x.contiguous(), topk_ids.contiguous()
        topk_weights = topk_weights.to(torch.float32).contiguous()
        tokens = x.shape[0]
        step = DECODE if tokens <= DECODE else MOST_TOKENS
        operator = torch.ops.gb10.moe_decode if tokens <= DECODE else torch.ops.gb10.moe_grouped
        if tokens:
            dispatch.ran(OPERATION, "moe_decode" if tokens <= DECODE else "moe_grouped", tokens)
        inner = 0 if shared is None else 2 * shared.w2.shape[-1]
        for first in range(0, tokens, step):
            piece = slice(first, first + step)
            part = shared
            if shared is not None and shared.multiplier is not None:
                part = shared._replace(multiplier=shared.multiplier[piece])
            options = Options(
                expert_map=expert_map,
                shared=part,
                activation=self.moe_config.activation.value,
                swizzled=self.swizzled,
            )
            some = x[piece]
            size = self.sizes(some.shape[0], topk_ids.shape[1], inner)
            operator(
                some,
                *self.weights,
                topk_ids[piece],
                topk_weights[piece],
                *option_arguments(**options),
                workspace.get(x.device, size),
                out[piece],
            )


def _routing(topk_weights: torch.Tensor, on_input: bool) -> torch.Tensor:
    """The weights of the output: with ``on_input`` vLLM has multiplied the input by them."""
    return torch.ones_like(topk_weights) if on_input else topk_weights


class NativeExperts(_Decode, mk.FusedMoEExpertsModular):  # type: ignore[misc]
    """W4A16 for any number of tokens: `moe_decode` to 16, `moe_grouped` above."""

    swizzled = False
    grouped = True

    @staticmethod
    def activation_format() -> mk.FusedMoEActivationFormat:
        return mk.FusedMoEActivationFormat.Standard

    @property
    def expects_unquantized_inputs(self) -> bool:
        return True

    @staticmethod
    def _supports_current_device() -> bool:
        return bool(current_platform.is_cuda() and current_platform.has_device_capability(90))

    @staticmethod
    def _supports_no_act_and_mul() -> bool:
        return False

    @staticmethod
    def _supports_quant_scheme(weight_key: QuantKey | None, activation_key: QuantKey | None) -> bool:
        return weight_key == kNvfp4Static and activation_key in (None, kNvfp4Dynamic)

    @staticmethod
    def _supports_activation(activation: MoEActivation) -> bool:
        return activation in _ACTIVATIONS

    @staticmethod
    def supports_lora() -> bool:
        return False

    def process_weights_after_loading(self, layer: Any) -> None:
        """Keep the checkpoint's layout: it is the layout that the kernels read."""
        self.prepare(self.g1_alphas, self.g2_alphas, layer, (self.w1_scale, self.w2_scale))

    def workspace_shapes(
        self, M: int, N: int, K: int, *_rest: object
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        return (0,), (0,), (M, K)

    def finalize_weight_and_reduce_impl(self) -> mk.TopKWeightAndReduce:
        return TopKWeightAndReduceNoOP()

    def apply(
        self,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        expert_map: torch.Tensor | None,
        apply_router_weight_on_input: bool,
        **_rest: Any,
    ) -> None:
        weights = _routing(topk_weights, apply_router_weight_on_input)
        self.run(hidden_states, topk_ids, weights, output, expert_map)


class CutlassDecodeExperts(_Decode, CutlassExpertsFp4):  # type: ignore[misc]
    """12.x: `moe_decode` to 16 tokens, vLLM's CUTLASS (W4A4) above, of one copy with swizzled scales."""

    swizzled = True
    grouped = False

    @staticmethod
    def _supports_current_device() -> bool:
        return bool(current_platform.is_cuda() and current_platform.is_device_capability_family(120))

    @staticmethod
    def _supports_no_act_and_mul() -> bool:
        return False

    @staticmethod
    def _supports_activation(activation: MoEActivation) -> bool:
        return activation in _ACTIVATIONS

    def process_weights_after_loading(self, layer: Any) -> None:
        """Keep the weights' global scales: CUTLASS's are multiplied by those of the activations, in place."""
        w13_global, w2_global = self.g1_alphas.clone(), self.g2_alphas.clone()
        super().process_weights_after_loading(layer)
        self.prepare(w13_global, w2_global, layer, (self.w1_scale, self.w2_scale))

    def apply(self, **arguments: Any) -> None:
        x, ids = arguments["hidden_states"], arguments["topk_ids"]
        if x.shape[0] <= DECODE:
            weights = _routing(arguments["topk_weights"], arguments["apply_router_weight_on_input"])
            self.run(x, ids, weights, arguments["output"], arguments["expert_map"])
        else:
            dispatch.ran(OPERATION, "cutlass", x.shape[0])
            super().apply(**arguments)
