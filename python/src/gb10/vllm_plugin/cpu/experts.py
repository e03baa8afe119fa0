"""NVFP4 mixture-of-experts layers for vLLM's modular MoE kernels.

mypy sees vLLM's classes as Any. Hence the `type: ignore[misc]` where they are subclassed.
"""

from typing import Any

import torch
import vllm.model_executor.layers.fused_moe.modular_kernel as mk
import vllm.model_executor.layers.fused_moe.oracle.nvfp4 as oracle
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import (
    ArmCPUUnquantizedExperts,
    CPUUnquantizedExperts,
    PowerCPUUnquantizedExperts,
    X86CPUUnquantizedExperts,
)
from vllm.model_executor.layers.quantization.utils.quant_utils import QuantKey, kNvfp4Dynamic, kNvfp4Static
from vllm.model_executor.utils import replace_parameter

from gb10.nvfp4.quantize import dequantize
from gb10.vllm_plugin.cpu.mode import Mode
from gb10.vllm_plugin.cpu.ops import GATED_ACTIVATIONS, nvfp4_experts, through_reciprocal


def _refusal(moe_config: FusedMoEConfig) -> str | None:
    """Return why no mode can run this MoE, or None."""
    if moe_config.activation.value not in GATED_ACTIVATIONS:
        return f"gb10's NVFP4 experts on CPU have no {moe_config.activation.value} activation"
    if moe_config.swiglu_limit is not None:
        return "gb10's NVFP4 experts on CPU do not clamp SwiGLU (swiglu_limit)"
    if moe_config.has_bias:
        return "gb10's NVFP4 experts on CPU have no expert biases"
    return None


def local_expert_ids(topk_ids: torch.Tensor, expert_map: torch.Tensor | None) -> torch.Tensor:
    """Turn the router's expert numbers into this rank's; -1 where another rank has the expert.

    topk_ids: [T, K] integer, -1 allowed; expert_map: [global experts] integer, or None with one rank only.
    """
    if expert_map is None:
        return topk_ids
    local = expert_map[topk_ids.clamp(min=0).long()]
    return torch.where(topk_ids < 0, -1, local).to(topk_ids.dtype)


class _Nvfp4Experts(CPUUnquantizedExperts):  # type: ignore[misc]
    """What the modes have in common with vLLM's experts for the CPU, but for the weights' format."""

    takes_row_scales = True

    @staticmethod
    def _supports_quant_scheme(weight_key: QuantKey | None, activation_key: QuantKey | None) -> bool:
        return weight_key == kNvfp4Static and activation_key in (None, kNvfp4Dynamic)

    @staticmethod
    def is_supported_config(
        cls: type[mk.FusedMoEExperts],
        moe_config: FusedMoEConfig,
        weight_key: QuantKey | None,
        activation_key: QuantKey | None,
        activation_format: mk.FusedMoEActivationFormat,
    ) -> tuple[bool, str | None]:
        if (reason := _refusal(moe_config)) is not None:
            return False, reason
        # vLLM declares this a static method and passes `cls` by hand; `super()` takes it from there.
        base: Any = super()
        supported: tuple[bool, str | None] = base.is_supported_config(
            cls, moe_config, weight_key, activation_key, activation_format
        )
        return supported


class _DequantExperts(_Nvfp4Experts):
    """Mode `dequant`: weights in the model's dtype after load, then vLLM's own fused MoE in C++."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Replace the packed weights by their values, one expert at a time, and let vLLM prepack them.

        layer.w13_weight: [E, 2 I, H/2] uint8 -> [E, 2 I, H]; layer.w2_weight: [E, H, I/2] uint8 -> [E, H, I].
        """
        dtype = self.moe_config.in_dtype
        for name, global_scales in (("w13", self.g1_alphas), ("w2", self.g2_alphas)):
            packed = getattr(layer, f"{name}_weight").data
            scales = getattr(layer, f"{name}_weight_scale").data
            experts, rows, half = packed.shape
            weight = torch.empty(experts, rows, 2 * half, dtype=dtype)
            for expert in range(experts):
                weight[expert] = dequantize(packed[expert], scales[expert], global_scales[expert], dtype)
            replace_parameter(layer, f"{name}_weight", weight)
            replace_parameter(layer, f"{name}_weight_scale", torch.empty(0))
        # The quant config holds the only other reference to the block scales.
        self.quant_config._w1.scale = self.quant_config._w2.scale = None
        super().process_weights_after_loading(layer)

    def apply(
        self,
        *,
        output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        expert_map: torch.Tensor | None,
        apply_router_weight_on_input: bool,
        **rest: Any,
    ) -> None:
        # vLLM's C++ kernel takes local ids only and has no "skip". A foreign expert becomes expert 0 with
        # weight 0. A weight that is on the input already cannot be zeroed: then (top-1) the row is cleared.
        ids = local_expert_ids(topk_ids, expert_map)
        foreign = ids < 0 if expert_map is not None else None
        if foreign is not None:
            ids = ids.masked_fill(foreign, 0)
            topk_weights = topk_weights.masked_fill(foreign, 0.0)
        super().apply(
            output=output,
            topk_weights=topk_weights,
            topk_ids=ids,
            expert_map=None,
            apply_router_weight_on_input=apply_router_weight_on_input,
            **rest,
        )
        if foreign is not None and apply_router_weight_on_input:
            output.masked_fill_(foreign, 0.0)


class X86DequantExperts(_DequantExperts, X86CPUUnquantizedExperts):  # type: ignore[misc]
    """`dequant` on x86 with AMX (bfloat16 only)."""


class ArmDequantExperts(_DequantExperts, ArmCPUUnquantizedExperts):  # type: ignore[misc]
    """`dequant` on Arm with NEON (bfloat16 only)."""


class PowerDequantExperts(_DequantExperts, PowerCPUUnquantizedExperts):  # type: ignore[misc]
    """`dequant` on POWER with VSX (bfloat16 only)."""


class VectorDequantExperts(_DequantExperts):
    """`dequant` on any CPU and dtype: vLLM's portable vector kernel."""


class PackedExperts(_Nvfp4Experts):
    """Mode `packed`: weights stay packed; each expert that a batch uses is dequantised for that call."""

    _input_scales: tuple[torch.Tensor, torch.Tensor] | None = None
    _global_scales: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def _supports_grouped_gemm(cls, moe_config: FusedMoEConfig) -> tuple[bool, str | None]:
        return True, None

    def process_weights_after_loading(self, layer: Any) -> None:
        """Keep the checkpoint's layout: it is the layout that the operator reads."""

    def apply(
        self,
        *,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        activation: MoEActivation,
        expert_map: torch.Tensor | None,
        apply_router_weight_on_input: bool,
        **_rest: Any,
    ) -> None:
        w13_input_scale, w2_input_scale = self._input_scales or (None, None)
        w13_global_scales, w2_global_scales = self._global_scales or (self.g1_alphas, self.g2_alphas)
        result = nvfp4_experts(
            hidden_states,
            w1,
            self.w1_scale,
            w13_global_scales,
            w2,
            self.w2_scale,
            w2_global_scales,
            w13_input_scale,
            w2_input_scale,
            local_expert_ids(topk_ids, expert_map),
            None if apply_router_weight_on_input else topk_weights,
            activation.value,
        )
        output.copy_(result)


class EmulateExperts(PackedExperts):
    """Mode `emulate`: as `packed`, with activations quantised and dequantised. For W4A4 checkpoints alone.

    The class is chosen by what the layer's method says of its activations, whatever the checkpoint's format.
    A weight-only layer has input scales too, which nobody has written.
    """

    @staticmethod
    def _supports_quant_scheme(weight_key: QuantKey | None, activation_key: QuantKey | None) -> bool:
        return bool(weight_key == kNvfp4Static and activation_key == kNvfp4Dynamic)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Keep the checkpoint's layout; fetch the input scales; give both forms the same global scales."""
        self._global_scales = (through_reciprocal(self.g1_alphas), through_reciprocal(self.g2_alphas))
        # vLLM's loader has turned the scale into its reciprocal.
        scales = (1.0 / self.a1_gscale, 1.0 / self.a2_gscale)
        for name, scale in zip(("w13", "w2"), scales, strict=True):
            if not (torch.isfinite(scale).all() and (scale > 0).all()):
                raise ValueError(
                    f"NVFP4 experts: {name}_input_scale is {scale.tolist()}, expected a positive number. "
                    "The checkpoint has no usable input scales: declare it W4A16_NVFP4."
                )
        self._input_scales = scales


# In the order in which vLLM should try them.
EXPERTS: dict[Mode, list[type[mk.FusedMoEExperts]]] = {
    Mode.DEQUANT: [X86DequantExperts, ArmDequantExperts, PowerDequantExperts, VectorDequantExperts],
    Mode.PACKED: [PackedExperts],
    Mode.EMULATE: [EmulateExperts, PackedExperts],
}


def install() -> None:
    """Offer the experts of this process's mode as vLLM's EMULATION backend."""
    classes, original = EXPERTS[Mode.of_process()], oracle.backend_to_kernel_cls

    def backend_to_kernel_cls(backend: oracle.NvFp4MoeBackend) -> list[type[mk.FusedMoEExperts]]:
        return classes if backend is oracle.NvFp4MoeBackend.EMULATION else original(backend)

    oracle.backend_to_kernel_cls = backend_to_kernel_cls
