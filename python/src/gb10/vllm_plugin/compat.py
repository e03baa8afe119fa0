"""A guard: does this vLLM still have what the plugin builds on?"""

import importlib
import inspect
from dataclasses import dataclass

WRITTEN_FOR = "0.32.0"

_LAYERS = "vllm.model_executor.layers"


class IncompatibleVllmError(RuntimeError):
    """vLLM lacks something that the plugin uses, or has changed its shape."""


@dataclass(frozen=True)
class Need:
    """One attribute of vLLM, with the parameter names the plugin relies on (None: it only has to exist)."""

    module: str
    attribute: str
    parameters: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return f"{self.module}.{self.attribute}"

    def problem(self) -> str | None:
        """Return what is wrong with this attribute, or None."""
        try:
            found: object = importlib.import_module(self.module)
        except ImportError as error:
            return f"cannot import {self.module} ({error})"
        for part in self.attribute.split("."):
            if not hasattr(found, part):
                return f"{self.name} is gone"
            found = getattr(found, part)
        if self.parameters is None:
            return None
        if not callable(found):
            return f"{self.name} is no longer a function"
        present = tuple(inspect.signature(found).parameters)
        if present != self.parameters:
            return f"{self.name} takes ({', '.join(present)}), expected ({', '.join(self.parameters)})"
        return None


_EXPERTS_APPLY = (
    "self",
    "output",
    "hidden_states",
    "w1",
    "w2",
    "topk_weights",
    "topk_ids",
    "activation",
    "global_num_experts",
    "expert_map",
    "a1q_scale",
    "a2_scale",
    "workspace13",
    "workspace2",
    "expert_tokens_meta",
    "apply_router_weight_on_input",
)
_KERNEL_CHOICE = ("cls", "moe_config", "weight_key", "activation_key", "activation_format")
_CPU_MOE = f"{_LAYERS}.fused_moe.experts.cpu_moe"

NEEDS: tuple[Need, ...] = (
    Need(
        "vllm.model_executor.kernels.linear",
        "register_linear_kernel",
        ("kernel_class", "platform", "kernel_type"),
    ),
    Need(
        "vllm.model_executor.kernels.linear",
        "NvFp4LinearKernel.apply_weights",
        ("self", "layer", "x", "bias"),
    ),
    Need("vllm.model_executor.kernels.linear", "NvFp4LinearLayerConfig", ()),
    Need(f"{_LAYERS}.quantization.modelopt", "init_nvfp4_linear_kernel", ("use_a16",)),
    Need(f"{_LAYERS}.quantization.modelopt", "ModelOptNvFp4Config.get_supported_act_dtypes", ("self",)),
    Need(f"{_LAYERS}.quantization.utils.quant_utils", "kNvfp4Static"),
    Need(f"{_LAYERS}.quantization.utils.quant_utils", "kNvfp4Dynamic"),
    Need(f"{_LAYERS}.fused_moe.oracle.nvfp4", "backend_to_kernel_cls", ("backend",)),
    Need(f"{_LAYERS}.fused_moe.oracle.nvfp4", "NvFp4MoeBackend.EMULATION"),
    Need(f"{_LAYERS}.fused_moe.modular_kernel", "FusedMoEExpertsModular.apply", _EXPERTS_APPLY),
    Need(f"{_LAYERS}.fused_moe.modular_kernel", "FusedMoEExperts.is_supported_config", _KERNEL_CHOICE),
    Need(_CPU_MOE, "X86CPUUnquantizedExperts.apply", _EXPERTS_APPLY),
    Need(_CPU_MOE, "ArmCPUUnquantizedExperts.apply", _EXPERTS_APPLY),
    Need(_CPU_MOE, "PowerCPUUnquantizedExperts.apply", _EXPERTS_APPLY),
    Need(_CPU_MOE, "CPUUnquantizedExperts.apply", _EXPERTS_APPLY),
    Need(f"{_LAYERS}.utils", "dispatch_cpu_unquantized_gemm", ("layer", "remove_weight")),
    Need("vllm.model_executor.utils", "replace_parameter"),
    Need("vllm.envs", "environment_variables"),
)


def check(version: str, needs: tuple[Need, ...] = NEEDS) -> None:
    """Raise IncompatibleVllmError when the vLLM of this `version` lacks any of `needs`.

    All needs are looked at, so that one message names all that moved.
    """
    problems = [problem for need in needs if (problem := need.problem()) is not None]
    if problems:
        raise IncompatibleVllmError(
            f"gb10's plugin was written for vLLM {WRITTEN_FOR} and cannot run in vLLM {version}: "
            f"{'; '.join(problems)}. Install that version, "
            "or leave the plugin out with VLLM_PLUGINS=''."
        )
