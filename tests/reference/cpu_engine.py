"""Our engine's layers in vLLM's CPU engine, on the stand-ins for the kernels: what needs no GPU to be seen.

The decoder layers, Gated DeltaNet, their operators, what they read of vLLM's metadata and how they take over
a loaded model are the product's. Of this file are: the experts' adapter (NVFP4 experts as the mode `packed`
of the CPU plug-in holds them), the norm for many tokens, and vLLM's CPU kernels in the place of CUDA's.
"""

import re
from types import SimpleNamespace
from typing import Any

import torch
import vllm.model_executor.layers.mamba.ops.cpu.gdn_attention  # noqa: F401  registers the operator
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.mamba.gdn.qwen_gdn_linear_attn import QwenGatedDeltaNetAttention
from vllm.utils.torch_utils import _encode_layer_name

from gb10.kernels.moe_decode import SharedExpert, workspace_bytes
from gb10.vllm_plugin.cuda import install as engine
from gb10.vllm_plugin.cuda import settings
from gb10.vllm_plugin.cuda.layers import block, gdn
from reference import cpu_operators

Tensor = torch.Tensor


class PackedExperts:
    """A layer's NVFP4 experts, and its shared one, 16 tokens at a time through ``gb10::moe_decode``."""

    def __init__(self, runner: Any) -> None:
        routed = runner.routed_experts
        config = routed.quant_method.moe_kernel.fused_experts.quant_config
        self.routed_weights = (
            *(routed.w13_weight, routed.w13_weight_scale, _halves(config.g1_alphas)),
            *(
                routed.w2_weight,
                routed.w2_weight_scale,
                config.g2_alphas.reshape(len(config.g2_alphas), -1)[:, 0],
            ),
        )
        self.shared: SharedExpert | None = None
        # What the self-test looks at.
        self.kernel = SimpleNamespace(weights=self.routed_weights, swizzled=False, grouped=True)
        self.routed, self.module = SimpleNamespace(expert_map=None), None
        if runner.shared_experts is not None:
            one = runner.shared_experts._layer
            up, down = one.gate_up_proj, one.down_proj
            self.shared = SharedExpert(
                *(up.weight, up.weight_scale, _halves(up.weight_global_scale.reshape(1, -1)).reshape(-1)),
                *(down.weight, down.weight_scale, down.weight_global_scale.reshape(-1)[:1]),
            )

    def forward(
        self, x: Tensor, ids: Tensor, weights: Tensor, multiplier: Tensor | None, out: Tensor
    ) -> None:
        inner = 2 * self.routed_weights[3].shape[-1]
        shared_inner = 0 if self.shared is None else 2 * self.shared.w2.shape[-1]
        for first in range(0, len(x), 16):
            some = slice(first, first + 16)
            bytes_needed = workspace_bytes(len(x[some]), ids.shape[1], inner, shared_inner)
            torch.ops.gb10.moe_decode(
                x[some].contiguous(),
                *self.routed_weights,
                ids[some],
                weights[some],
                None,
                *((None,) * 6 if self.shared is None else self.shared[:6]),
                None if multiplier is None else multiplier[some],
                *("silu", float("inf"), 1.0, 0.0, False, False, False),
                torch.empty(bytes_needed, dtype=torch.uint8),
                out[some],
            )


def _experts_of(runner: Any) -> PackedExperts | None:
    kernel = getattr(runner.routed_experts.quant_method, "moe_kernel", None)
    four_bit = kernel is not None and kernel.fused_experts.quant_config.g1_alphas is not None
    return PackedExperts(runner) if four_bit else None


def _halves(scales: Tensor) -> Tensor:
    """``[E, 2]``: gate, up, of what is one number an expert or one a row."""
    wide = scales.reshape(scales.shape[0], -1)
    return wide[:, [0, wide.shape[1] // 2]].contiguous()


def _add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, epsilon: float, plus_one: bool
) -> tuple[Tensor, Tensor]:
    total = x.float() + residual.float()
    scaled = total * (total.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (scaled * (weight.float() + plus_one)).to(x.dtype), total.to(x.dtype)


def _others(core: gdn.Core, mixed: Tensor, out: Tensor) -> None:
    """vLLM's kernels for the CPU in the place of those for CUDA."""
    layer = core.layer
    qkv, z, b, a = core.unpack(mixed)
    result = torch.zeros_like(z)
    torch.ops.vllm.cpu_gdn_attention_core(qkv, b, a, result, _encode_layer_name(layer.prefix))
    out.copy_(layer.norm(result, z.contiguous()).flatten(-2))


def _cpu_states(layer: Any) -> tuple[Tensor, Tensor]:
    """The CPU kernels hold the recurrent state with its last two dimensions the other way round."""
    conv, state = stock_states(layer)
    slots, heads, values, keys = state.shape
    return conv, state.view(slots, heads, keys, values).transpose(-1, -2)


def _prepare(layer: Any, name: str) -> str | None:
    """The product's; the CPU may have packed the convolution's weight, which the stand-in reads as it was."""
    unpacked = getattr(layer.conv1d, "_cpu_unpacked_conv_weight", None)
    why = stock_prepare(layer, name)
    if why is None and unpacked is not None:
        object.__setattr__(layer.gb10_gdn, "conv_weight", unpacked)
    return why


def _process(self: UnquantizedLinearMethod, layer: Any) -> None:
    """Keep what our kernels read as it was loaded, beside what vLLM packs for oneDNN."""
    weight = layer.weight.data
    stock_process(self, layer)
    if re.search(r"\.(in_proj_\w+|gate|shared_expert_gate)$", getattr(layer, "prefix", "")):
        layer.weight.data = weight


stock_states, stock_prepare = gdn.states, gdn.prepare
stock_process = UnquantizedLinearMethod.process_weights_after_loading


def install() -> None:
    """Turn it on in this process, with 16 bit weights as they are."""
    cpu_operators.install()
    settings._of_process = settings.CudaMode(settings.Format.KEEP, settings.Format.KEEP)
    block.ROUTERS = (CPURouter,)
    for module, name, made in (
        (block, "experts_of", _experts_of),
        (block, "add_norm", _add_norm),
        (gdn, "others", _others),
        (gdn, "states", _cpu_states),
        (gdn, "prepare", _prepare),
    ):
        setattr(module, name, made)
    UnquantizedLinearMethod.process_weights_after_loading = _process
    engine.install()
    QwenGatedDeltaNetAttention.forward_cpu = QwenGatedDeltaNetAttention.forward_cuda
