"""Ask vLLM's own selectors what they would choose on a GPU that is not here; print JSON.

Run as a program by test_routing.py, in a process of its own: it changes vLLM's platform object. Each
row is one capability with and without FlashInfer. What the compiled extension would say is taken as true
from 10.0 on for FP4 (`cutlass_scaled_mm_supports_fp4`: that is what the wheel says for 12.1) and from 8.9 on
for FP8 (`cutlass_fp8_supported`).
"""

import importlib
import json
import sys
import types
from types import SimpleNamespace
from typing import Any

from gb10.routing import Capability

CAPABILITIES: tuple[Capability, ...] = ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0), (12, 1))


def pretend(capability: Capability, flashinfer: bool) -> None:
    """Make vLLM's platform a CUDA one of ``capability``."""
    from vllm import platforms
    from vllm.platforms.interface import DeviceCapability, PlatformEnum

    kind = type(platforms.current_platform)
    found = DeviceCapability(*capability)
    kind._enum = PlatformEnum.CUDA
    for name, value in (
        ("is_cuda", True),
        ("is_cuda_alike", True),
        ("is_cpu", False),
        ("get_device_capability", found),
        ("get_cuda_runtime_major", 13),
        ("supports_fp8", found.to_int() >= 89),
    ):
        setattr(kind, name, classmethod(lambda cls, *a, answer=value, **k: answer))
    for module in [m for n, m in sys.modules.items() if n.startswith("vllm.") and m is not None]:
        for name in [n for n in vars(module) if n.startswith("has_flashinfer")]:
            setattr(module, name, lambda *a, answer=flashinfer, **k: answer)
        if "cutlass_scaled_mm_supports_fp4" in vars(module):
            vars(module)["cutlass_scaled_mm_supports_fp4"] = lambda number: number >= 100
        if "cutlass_fp8_supported" in vars(module):
            vars(module)["cutlass_fp8_supported"] = lambda: found.to_int() >= 89


def moe_choice() -> str:
    """First backend of the NVFP4 MoE oracle's order whose kernels take this device and NVFP4."""
    import inspect
    import re

    from vllm.model_executor.layers.fused_moe.oracle import nvfp4
    from vllm.model_executor.layers.quantization.utils.quant_utils import kNvfp4Dynamic, kNvfp4Static

    source = inspect.getsource(nvfp4.select_nvfp4_moe_backend)
    listed = source.split("AVAILABLE_BACKENDS = [", 1)[1].split("]", 1)[0]
    for name in re.findall(r"NvFp4MoeBackend\.(\w+)", listed):
        if name.endswith("_BATCHED"):
            continue
        for kernel in nvfp4.backend_to_kernel_cls(nvfp4.NvFp4MoeBackend[name]):
            if kernel._supports_current_device() and kernel._supports_quant_scheme(
                kNvfp4Static, kNvfp4Dynamic
            ):
                return str(name)
    return "none"


def fp8_choice(linear: Any) -> str:
    """The linear kernel for FP8 weights with one scale a tensor and static activation scales."""
    import torch
    from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8StaticTensorSym

    config = linear.FP8ScaledMMLinearLayerConfig(
        weight_quant_key=kFp8StaticTensorSym,
        activation_quant_key=kFp8StaticTensorSym,
        input_dtype=torch.bfloat16,
        out_dtype=torch.bfloat16,
        weight_shape=(1024, 1024),
    )
    return str(
        linear.choose_scaled_mm_linear_kernel(
            config, linear._POSSIBLE_FP8_KERNELS, quantization="fp8_w8a8"
        ).__name__
    )


def main() -> None:
    """Print a list of rows."""
    sys.modules["vllm._C_stable_libtorch"] = types.ModuleType("vllm._C_stable_libtorch")
    linear = importlib.import_module("vllm.model_executor.kernels.linear")
    gdn = importlib.import_module("vllm.model_executor.layers.mamba.gdn.qwen_gdn_linear_attn")
    cuda = importlib.import_module("vllm.platforms.cuda")
    from vllm.platforms.interface import DeviceCapability

    config = SimpleNamespace(
        additional_config={},
        model_config=SimpleNamespace(hf_text_config=SimpleNamespace(linear_key_head_dim=128)),
    )
    moe_choice()  # import every kernel class before pretending
    rows = []
    for capability in CAPABILITIES:
        for flashinfer in (False, True):
            pretend(capability, flashinfer)
            rows.append(
                {
                    "capability": capability,
                    "flashinfer": flashinfer,
                    "nvfp4_linear": type(linear.init_nvfp4_linear_kernel()).__name__,
                    "nvfp4_moe": moe_choice(),
                    "fp8_linear": fp8_choice(linear),
                    "gdn_prefill": gdn._resolve_gdn_prefill_backend(config)[1],
                    "attention": [
                        b.name for b in cuda._get_backend_priorities(False, DeviceCapability(*capability))
                    ],
                }
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
