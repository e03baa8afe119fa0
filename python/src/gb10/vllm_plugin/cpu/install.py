"""Put the kernels where vLLM looks for them.

vLLM has a public registry for linear kernels only. Other places are wrapped or added to. Each of them says
why, and what has to happen upstream before it can go.
"""

import logging

import torch
import vllm
import vllm.envs
import vllm.model_executor.layers.fused_moe.oracle.nvfp4 as oracle
from vllm.model_executor.kernels.linear import (
    NvFp4LinearKernel,
    NvFp4LinearLayerConfig,
    register_linear_kernel,
)
from vllm.model_executor.layers.fused_moe.modular_kernel import FusedMoEExperts
from vllm.model_executor.layers.quantization import modelopt
from vllm.platforms.interface import PlatformEnum

from gb10.vllm_plugin import compat
from gb10.vllm_plugin.cpu import experts, linear
from gb10.vllm_plugin.cpu.mode import ENV_NAME, Mode

logger = logging.getLogger(__name__)

_installed: Mode | None = None


def install(mode: Mode) -> None:
    """Register the kernels of `mode` in this process. A second call does nothing.

    Raises IncompatibleVllmError when vLLM's internals moved, RuntimeError for a second, different mode.
    """
    global _installed
    if _installed is not None:
        if _installed is not mode:
            raise RuntimeError(f"NVFP4 mode is {_installed} in this process already; it cannot become {mode}")
        return
    compat.check(vllm.__version__)
    register_linear_kernel(linear.KERNELS[mode], PlatformEnum.CPU, "nvfp4")
    _wrap_weight_only_linear(linear.KERNELS[mode])
    _wrap_experts_choice(experts.EXPERTS[mode])
    _allow_float32()
    _separate_compile_caches(mode)
    _installed = mode
    logger.info("gb10: NVFP4 on CPU, mode %s", mode)


def _wrap_weight_only_linear(kernel: type[NvFp4LinearKernel]) -> None:
    """Use our kernel for W4A16_NVFP4 checkpoints too.

    Why: for these vLLM forces the Marlin kernel and never asks the registry.
    Goes when: `init_nvfp4_linear_kernel(use_a16=True)` reads the registry on platforms without Marlin.
    """
    original = modelopt.init_nvfp4_linear_kernel

    def init_nvfp4_linear_kernel(use_a16: bool = False) -> NvFp4LinearKernel:
        return kernel(NvFp4LinearLayerConfig()) if use_a16 else original(use_a16)

    modelopt.init_nvfp4_linear_kernel = init_nvfp4_linear_kernel


def _wrap_experts_choice(classes: list[type[FusedMoEExperts]]) -> None:
    """Offer our experts as vLLM's EMULATION backend.

    Why: NVFP4 MoE backends are a closed enum. EMULATION is its portable member, and keeps the layout of the
    checkpoint. vLLM's own class for it is written in Triton and refuses a CPU.
    Goes when: vLLM has a registry of MoE experts, or CPU experts for NVFP4.
    """
    original = oracle.backend_to_kernel_cls

    def backend_to_kernel_cls(backend: oracle.NvFp4MoeBackend) -> list[type[FusedMoEExperts]]:
        return classes if backend is oracle.NvFp4MoeBackend.EMULATION else original(backend)

    oracle.backend_to_kernel_cls = backend_to_kernel_cls


def _allow_float32() -> None:
    """Let NVFP4 checkpoints run with float32 activations.

    Why: token-for-token tests against a reference need them; no GPU kernel offers them, so vLLM refuses them.
    Goes when: ModelOptNvFp4Config asks the kernel which dtypes it takes.
    """
    original = modelopt.ModelOptNvFp4Config.get_supported_act_dtypes

    def get_supported_act_dtypes(self: modelopt.ModelOptNvFp4Config) -> list[torch.dtype]:
        return [*original(self), torch.float32]

    modelopt.ModelOptNvFp4Config.get_supported_act_dtypes = get_supported_act_dtypes


def _separate_compile_caches(mode: Mode) -> None:
    """Make the mode part of the key of vLLM's torch.compile cache.

    Why: the key knows the checkpoint and vLLM's own variables. Two modes give two graphs for one checkpoint.
    Without this, `packed` can load the graph that `emulate` has saved, and quantise its activations.
    Goes when: vLLM's key has a part for plugins.
    """
    vllm.envs.environment_variables[ENV_NAME] = lambda: mode.value
