"""A layer's experts after routing, with the shared expert folded in where its weights are NVFP4 too."""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.model_executor.layers.activation import SiluAndMul

from gb10.kernels.moe_decode import SharedExpert
from gb10.vllm_plugin.cuda.experts.kernels import CutlassDecodeExperts, NativeExperts
from gb10.vllm_plugin.cuda.linear import Native
from gb10.vllm_plugin.cuda.settings import DECODE

_ATTRIBUTE = "gb10_experts"
_UNIT = 64


@dataclass(frozen=True)
class Experts:
    """What `forward` needs of one layer."""

    routed: Any
    """vLLM's RoutedExperts."""

    kernel: NativeExperts | CutlassDecodeExperts
    shared: SharedExpert | None
    """The shared expert's weights, where it is folded in."""

    module: Any
    """The shared expert's module, or None: it runs where the kernel cannot take the weights along."""

    why_apart: str
    """Why the shared expert is not folded in; empty where it is, or where there is none."""

    def forward(
        self,
        x: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        shared_multiplier: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """Write routed and shared experts' sum for ``x`` ``[M, H]`` into ``out``, any M.

        ``topk_ids`` int32 or int64 ``[M, topk]``, global numbers; ``topk_weights`` float32;
        ``shared_multiplier`` ``[M]`` or ``[M, 1]``, float32 or the dtype of ``x``, where there is a shared
        expert with a gate. With several ranks it is this rank's part of the sum.
        """
        kernel, shared = self.kernel, self.shared
        if x.shape[0] <= DECODE or kernel.grouped:
            if shared is not None:
                shared = shared._replace(multiplier=shared_multiplier)
            kernel.run(x, topk_ids, topk_weights, out, self.routed.expert_map, shared)
        else:
            shared = None
            method = self.routed.quant_method
            out.copy_(method.apply(self.routed, x, topk_weights, topk_ids, None, None))
        if shared is None and self.module is not None:
            out.add_(self.module(x))


def _fold(module: Any, kernel: NativeExperts | CutlassDecodeExperts) -> SharedExpert | str:
    """The shared expert's weights for the kernel, or why it cannot take them."""
    layers: list[Any] = [getattr(module, name, None) for name in ("gate_up_proj", "down_proj")]
    held: list[Native] = [layer.gb10_native for layer in layers if hasattr(layer, "gb10_native")]
    if not isinstance(getattr(module, "act_fn", None), SiluAndMul):
        return "is no SwiGLU"
    if kernel.moe_config.activation.value != "silu":
        return "has another activation than the routed ones"
    if len(held) != len(layers):
        return "is not NVFP4 in the checkpoint's layout"
    up, down = held
    if up.swizzled != kernel.swizzled or down.swizzled != kernel.swizzled:
        return "has its block scales in another order"
    inner = 2 * down.codes.shape[1]
    if inner % _UNIT or up.codes.shape != (2 * inner, kernel.weights[0].shape[-1]):
        return f"has an intermediate size of {inner}"
    if any(getattr(layer, "bias", None) is not None for layer in layers):
        return "has biases"
    up_global, down_global = up.global_scale, down.global_scale
    if (ratios := getattr(layers[0], "part_ratios", None)) is not None:
        up_global = (up_global * ratios[[0, inner]]).contiguous()  # gate and up have scales of their own
    if getattr(layers[1], "part_ratios", None) is not None:
        return "has several global scales"
    return SharedExpert(up.codes, up.scales, up_global, down.codes, down.scales, down_global)


def experts_of(runner: Any) -> Experts | None:
    """The experts of a loaded MoERunner, made at the first call after a load; None where others run them."""
    found: Experts | None = getattr(runner, _ATTRIBUTE, None)
    kernel = getattr(runner.routed_experts.quant_method, "moe_kernel", None)
    experts = None if kernel is None or kernel.is_monolithic else kernel.fused_experts
    if not isinstance(experts, NativeExperts | CutlassDecodeExperts):
        return None
    if found is not None and found.kernel is experts:
        return found
    if runner._shared_experts is not None:
        module = runner._shared_experts._layer
    else:
        module = None if found is None else found.module  # folded in by an earlier load
    folded = "" if module is None else _fold(module, experts)
    shared = None if isinstance(folded, str) else folded
    if shared is not None:
        experts.reserve(2 * shared.w2.shape[-1])
    why = folded if isinstance(folded, str) else ""
    made = Experts(runner.routed_experts, experts, shared, module, why)
    object.__setattr__(runner, _ATTRIBUTE, made)
    return made
