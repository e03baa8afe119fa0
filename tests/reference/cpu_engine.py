"""Our engine's layers in vLLM's CPU engine, on the stand-ins for the kernels: what needs no GPU to be seen.

The decoder layers, Gated DeltaNet, their operators, what they read of vLLM's metadata and how they take over
a loaded model are the product's, and so are NVFP4 linear layers, experts and attention. Of this file are
vLLM's CPU kernels in the place of CUDA's.
"""

import re
from typing import Any

import torch
import vllm.model_executor.layers.mamba.ops.cpu.gdn_attention  # noqa: F401  registers the operator
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.mamba.gdn.qwen_gdn_linear_attn import QwenGatedDeltaNetAttention
from vllm.utils.torch_utils import _encode_layer_name

from gb10.vllm_plugin.cuda import experts, linear, settings
from gb10.vllm_plugin.cuda import install as engine
from gb10.vllm_plugin.cuda.experts.kernels import NativeExperts
from gb10.vllm_plugin.cuda.layers import block, gdn
from reference import cpu_operators

Tensor = torch.Tensor


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
        (NativeExperts, "_supports_current_device", staticmethod(lambda: True)),
        (linear.NativeLinearKernel, "is_supported", classmethod(lambda *_: (True, None))),
        (gdn, "others", _others),
        (gdn, "states", _cpu_states),
        (gdn, "prepare", _prepare),
    ):
        setattr(module, name, made)
    UnquantizedLinearMethod.process_weights_after_loading = _process
    linear.install()
    experts.install()
    engine.install()
    QwenGatedDeltaNetAttention.forward_cpu = QwenGatedDeltaNetAttention.forward_cuda
