"""NVFP4 dense layers: kernels for vLLM's registry of linear kernels."""

from typing import Any

import torch
from vllm.model_executor.kernels import linear
from vllm.model_executor.kernels.linear import NvFp4LinearKernel, NvFp4LinearLayerConfig
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.utils import replace_parameter
from vllm.platforms import current_platform
from vllm.platforms.interface import PlatformEnum

from gb10.nvfp4.quantize import dequantize
from gb10.vllm_plugin.cpu.mode import Mode
from gb10.vllm_plugin.cpu.ops import nvfp4_linear, through_reciprocal


class _CpuKernel(NvFp4LinearKernel):  # type: ignore[misc]  # vLLM is untyped for mypy
    """What all modes share: which machines and layers they serve.

    A layer's `weight_global_scale` is one number, or one for each row where parts of the layer differ.
    """

    takes_row_scales = True

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        return (True, None) if current_platform.is_cpu() else (False, "needs vLLM's CPU platform")

    @classmethod
    def can_implement(cls, config: NvFp4LinearLayerConfig) -> tuple[bool, str | None]:
        return True, None


class DequantLinearKernel(_CpuKernel):
    """Mode `dequant`: weights in the model's dtype after load, then vLLM's own CPU GEMM."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Replace layer.weight ([N, K/2] uint8) by its values ([N, K]); let vLLM choose its GEMM for them."""
        weight = dequantize(layer.weight, layer.weight_scale, layer.weight_global_scale, layer.params_dtype)
        replace_parameter(layer, "weight", weight)
        del layer.weight_scale
        dispatch_cpu_unquantized_gemm(layer, remove_weight=True)

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        out: torch.Tensor = layer.cpu_linear(x, layer.weight, bias)
        return out


class PackedLinearKernel(_CpuKernel):
    """Mode `packed`: weights stay packed and are dequantised at each call."""

    quantize_activations = False

    def process_weights_after_loading(self, layer: Any) -> None:
        """Keep the checkpoint's layout: it is the layout that the operator reads."""

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        # A W4A16 checkpoint has no input scale. Its activations are never quantised.
        input_scale = getattr(layer, "input_global_scale", None) if self.quantize_activations else None
        out: torch.Tensor = nvfp4_linear(
            x, layer.weight, layer.weight_scale, layer.weight_global_scale, input_scale, bias
        )
        return out


class EmulateLinearKernel(PackedLinearKernel):
    """Mode `emulate`: as `packed`, with the activations of W4A4 checkpoints quantised and dequantised."""

    quantize_activations = True

    def process_weights_after_loading(self, layer: Any) -> None:
        """Keep the checkpoint's layout; of W4A4 both forms of a checkpoint get the same scales."""
        if hasattr(layer, "input_global_scale"):
            replace_parameter(layer, "weight_global_scale", through_reciprocal(layer.weight_global_scale))


KERNELS: dict[Mode, type[NvFp4LinearKernel]] = {
    Mode.DEQUANT: DequantLinearKernel,
    Mode.PACKED: PackedLinearKernel,
    Mode.EMULATE: EmulateLinearKernel,
}


def install() -> None:
    """Have vLLM build the kernel of this process's mode for NVFP4 layers of every checkpoint format.

    Layers that quantise activations ask the registry. Weight-only ones (ModelOpt's W4A16_NVFP4, NVFP4A16 of
    compressed-tensors) do not: they get the kernel of this name, Marlin, which no CPU can run.
    """
    kernel = KERNELS[Mode.of_process()]
    linear.register_linear_kernel(kernel, PlatformEnum.CPU, "nvfp4")
    linear.MarlinNvFp4LinearKernel = kernel
