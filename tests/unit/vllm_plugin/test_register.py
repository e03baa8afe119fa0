"""Registration, in fresh processes: it changes vLLM for the whole process."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

PREPARE = """
import torch
import gb10.vllm_plugin as plugin
from vllm.platforms import current_platform
from vllm.platforms.interface import PlatformEnum
from vllm.model_executor.kernels import linear
from vllm.model_executor.layers.quantization import modelopt
import vllm.model_executor.layers.fused_moe.oracle.nvfp4 as oracle
import vllm.envs

def cpu_kernels():
    return [kernel.__name__ for kernel in linear._POSSIBLE_NVFP4_KERNELS.get(PlatformEnum.CPU, [])]

def emulation_experts():
    return [cls.__name__ for cls in oracle.backend_to_kernel_cls(oracle.NvFp4MoeBackend.EMULATION)]
"""


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PREPARE + code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_registers_once_and_for_all() -> None:
    done = _python(
        """
if not current_platform.is_cpu():
    raise SystemExit("needs vLLM's CPU platform")
marlin = oracle.backend_to_kernel_cls(oracle.NvFp4MoeBackend.VLLM_CUTLASS)
plugin.register()
wrapped = modelopt.init_nvfp4_linear_kernel
plugin.register()
assert cpu_kernels() == ["PackedLinearKernel"], cpu_kernels()
assert emulation_experts() == ["PackedExperts"], emulation_experts()
assert modelopt.init_nvfp4_linear_kernel is wrapped
assert type(wrapped(use_a16=True)).__name__ == "PackedLinearKernel"
assert oracle.backend_to_kernel_cls(oracle.NvFp4MoeBackend.VLLM_CUTLASS) == marlin
dtypes = modelopt.ModelOptNvFp4Config("NVFP4").get_supported_act_dtypes()
assert dtypes.count(torch.float32) == 1, dtypes
assert vllm.envs.compile_factors()["GB10_CPU_NVFP4_MODE"] == "packed"
""",
        GB10_CPU_NVFP4_MODE="packed",
    )
    assert done.returncode == 0, done.stderr


def test_leaves_other_platforms_alone() -> None:
    done = _python(
        """
import sys
type(current_platform).is_cpu = lambda self: False
wrapped = modelopt.init_nvfp4_linear_kernel
plugin.register()
assert cpu_kernels() == [], cpu_kernels()
assert modelopt.init_nvfp4_linear_kernel is wrapped
assert "gb10.vllm_plugin.cpu.install" not in sys.modules
""",
        GB10_CPU_NVFP4_MODE="nonsense",
    )
    assert done.returncode == 0, done.stderr


def test_one_mode_per_process() -> None:
    done = _python(
        """
import os
plugin.register()
os.environ["GB10_CPU_NVFP4_MODE"] = "emulate"
plugin.register()
""",
        GB10_CPU_NVFP4_MODE="packed",
    )
    assert done.returncode != 0
    assert (
        "RuntimeError: NVFP4 mode is packed in this process already; it cannot become emulate" in done.stderr
    )


def test_says_what_moved() -> None:
    done = _python("del oracle.backend_to_kernel_cls\nplugin.register()\n")
    assert done.returncode != 0
    assert "IncompatibleVllmError: gb10's plugin was written for vLLM 0.32.0" in done.stderr
    assert "oracle.nvfp4.backend_to_kernel_cls is gone" in done.stderr
