"""Registration, in fresh processes: it changes vLLM for the whole process."""

from pathlib import Path

import pytest
from fresh import python

pytest.importorskip("vllm", reason="vLLM is not installed")

HELPERS = """
def cpu_kernels():
    return [kernel.__name__ for kernel in linear._POSSIBLE_NVFP4_KERNELS.get(PlatformEnum.CPU, [])]

def emulation_experts():
    return [cls.__name__ for cls in oracle.backend_to_kernel_cls(oracle.NvFp4MoeBackend.EMULATION)]

def linear_layer(config):
    from vllm.config import set_current_vllm_config
    from vllm.model_executor import parameter
    from vllm.model_executor.layers.linear import ReplicatedLinear
    # There are no process groups here.
    parameter.get_tensor_model_parallel_rank = lambda: 0
    parameter.get_tensor_model_parallel_world_size = lambda: 1
    with set_current_vllm_config(VllmConfig()):
        return ReplicatedLinear(64, 48, bias=False, quant_config=config, prefix="a", disable_tp=True)
"""


def test_registers_once_and_for_all() -> None:
    status, said = python(
        HELPERS
        + """
if not current_platform.is_cpu():
    raise SystemExit("needs vLLM's CPU platform")
marlin = oracle.backend_to_kernel_cls(oracle.NvFp4MoeBackend.VLLM_CUTLASS)
plugin.register()
experts, config = oracle.backend_to_kernel_cls, get_quantization_config("modelopt_fp4")
plugin.register()
assert cpu_kernels() == ["PackedLinearKernel"], cpu_kernels()
assert emulation_experts() == ["PackedExperts"], emulation_experts()
for weight_only in (False, True):
    kernel = linear.init_nvfp4_linear_kernel(use_a16=weight_only)
    assert type(kernel).__name__ == "PackedLinearKernel", kernel
assert oracle.backend_to_kernel_cls is experts
assert oracle.backend_to_kernel_cls(oracle.NvFp4MoeBackend.VLLM_CUTLASS) == marlin
assert get_quantization_config("modelopt_fp4") is config
dtypes = config("NVFP4").get_supported_act_dtypes()
assert dtypes.count(torch.float32) == 1, dtypes
assert vllm.envs.compile_factors()["GB10_CPU_NVFP4_MODE"] == "packed"
""",
        GB10_CPU_NVFP4_MODE="packed",
    )
    assert status == 0, said


def test_checkpoints_find_the_kernel() -> None:
    """A ModelOpt checkpoint of each algorithm picks its configuration; its layers get our kernel."""
    status, said = python(
        HELPERS
        + """
plugin.register()
nvfp4, mixed = get_quantization_config("modelopt_fp4"), get_quantization_config("modelopt_mixed")
for algorithm in ("NVFP4", "W4A16_NVFP4"):
    plain = {"quant_method": "modelopt", "quant_algo": algorithm, "group_size": 16, "ignore": []}
    layers = {"a": {"quant_algo": algorithm, "group_size": 16}}
    several = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    assert nvfp4.override_quantization_method(plain, None) == "modelopt_fp4"
    assert mixed.override_quantization_method(several, None) == "modelopt_mixed"
    assert nvfp4.from_config(plain).get_name() == "modelopt_fp4"
    for config in (nvfp4.from_config(plain), mixed.from_config(several)):
        method = linear_layer(config).quant_method
        assert type(method.kernel).__name__ == "EmulateLinearKernel"
        assert (method.spec.activation is None) == (algorithm == "W4A16_NVFP4")
""",
        GB10_CPU_NVFP4_MODE="emulate",
    )
    assert status == 0, said


def test_compressed_tensors_find_the_kernel() -> None:
    """With and without quantised activations, for linear layers and for experts."""
    status, said = python(
        HELPERS
        + """
plugin.register()
four = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
for activations in (four | {"dynamic": "local"}, None):
    group = {"targets": ["Linear"], "weights": four | {"dynamic": False}, "input_activations": activations}
    said = {"format": "nvfp4-pack-quantized", "config_groups": {"group_0": group}, "ignore": []}
    config = get_quantization_config("compressed-tensors").from_config(said)
    layer = linear_layer(config)
    assert type(layer.scheme.kernel).__name__ == "EmulateLinearKernel"
    assert hasattr(layer, "input_global_scale") == (activations is not None)
""",
        GB10_CPU_NVFP4_MODE="emulate",
    )
    assert status == 0, said


def test_leaves_other_platforms_alone() -> None:
    status, said = python(
        HELPERS
        + """
marlin = linear.MarlinNvFp4LinearKernel
type(current_platform).is_cpu = lambda self: False
config, experts = get_quantization_config("modelopt_fp4"), oracle.backend_to_kernel_cls
plugin.register()
assert cpu_kernels() == [], cpu_kernels()
assert oracle.backend_to_kernel_cls is experts
assert get_quantization_config("modelopt_fp4") is config is modelopt.ModelOptNvFp4Config
assert linear.MarlinNvFp4LinearKernel is marlin and marlin.__module__.startswith("vllm.")
assert "gb10.vllm_plugin.cpu.linear" not in sys.modules
""",
        GB10_CPU_NVFP4_MODE="nonsense",
    )
    assert status == 0, said


def test_fork_stays_fork() -> None:
    status, said = python(
        HELPERS
        + """
from gb10.vllm_plugin import patches
from vllm.config import VllmConfig
for expected in ("spawn", "fork", "fork"):
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    VllmConfig()
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == expected
    patches.apply("serve")
"""
    )
    assert status == 0, said


def test_a_model_is_looked_at_in_this_process(tmp_path: Path) -> None:
    """vLLM would start a Python that imports vLLM again; what was found is kept as before."""
    status, said = python(
        HELPERS
        + """
import subprocess
from gb10.vllm_plugin import patches
from vllm.model_executor.models import registry
patches.apply("serve")
def started(*_, **__):
    raise AssertionError("a process was started")
subprocess.run = started
model = registry.ModelRegistry.models["Qwen3NextForCausalLM"]
assert model.inspect_model_cls().is_hybrid
assert len(list(model._get_cache_dir().iterdir())) == 1
assert "vllm.model_executor.models.qwen3_next" in sys.modules
""",
        VLLM_CACHE_ROOT=str(tmp_path),
    )
    assert status == 0, said


def test_one_mode_per_process() -> None:
    status, said = python(
        HELPERS
        + """
plugin.register()
os.environ["GB10_CPU_NVFP4_MODE"] = "emulate"
plugin.register()
""",
        GB10_CPU_NVFP4_MODE="packed",
    )
    assert status != 0
    assert "RuntimeError: NVFP4 mode is packed in this process already; it cannot become emulate" in said


def test_says_what_moved() -> None:
    status, said = python("del oracle.backend_to_kernel_cls\nplugin.register()\n")
    assert status != 0
    assert "IncompatibleVllmError: gb10's plugin was written for vLLM 0.32.0" in said
    assert "oracle.nvfp4.backend_to_kernel_cls is gone" in said
