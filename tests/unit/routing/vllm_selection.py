"""Ask vLLM's own selectors what they would choose on a GPU that is not here; print JSON.

Run as a program by test_routing.py, in a process of its own: it changes vLLM's platform object. Each
row is one capability with and without FlashInfer. What the compiled extension would say is taken as true
from 10.0 on for FP4 (`cutlass_scaled_mm_supports_fp4`: that is what the wheel says for 12.1) and from 8.9 on
for FP8 (`cutlass_fp8_supported`). The last two rows are the CPU's, without and with AMX.
"""

import gc
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


def moe_choice(activation: object) -> str:
    """First backend of the NVFP4 MoE oracle's order whose kernels take this device and these activations."""
    import inspect
    import re

    from vllm.model_executor.layers.fused_moe.oracle import nvfp4
    from vllm.model_executor.layers.quantization.utils.humming import prioritize_humming
    from vllm.model_executor.layers.quantization.utils.quant_utils import kNvfp4Static

    source = inspect.getsource(nvfp4.select_nvfp4_moe_backend)
    listed = source.split("AVAILABLE_BACKENDS = [", 1)[1].split("]", 1)[0]
    backends = [nvfp4.NvFp4MoeBackend[name] for name in re.findall(r"NvFp4MoeBackend\.(\w+)", listed)]
    for backend in prioritize_humming(backends):
        if backend.name.endswith("_BATCHED"):
            continue
        for kernel in nvfp4.backend_to_kernel_cls(backend):
            if kernel._supports_current_device() and kernel._supports_quant_scheme(kNvfp4Static, activation):
                return str(backend.name)
    return "none"


def fp8_choices(linear: Any) -> dict[str, str]:
    """The linear kernel for FP8 weights by their scales: one a tensor, one a channel, one for 128 x 128."""
    import torch
    from vllm.model_executor.layers.quantization.utils import quant_utils as keys

    per_tensor, block = linear._POSSIBLE_FP8_KERNELS, linear._POSSIBLE_FP8_BLOCK_KERNELS
    asked = {
        "tensor": (keys.kFp8StaticTensorSym, keys.kFp8StaticTensorSym, per_tensor),
        "channel": (keys.kFp8StaticChannelSym, keys.kFp8DynamicTokenSym, per_tensor),
        "channel of ModelOpt": (keys.kFp8StaticTokenSym, keys.kFp8DynamicTokenSym, per_tensor),
        "block": (keys.kFp8Static128BlockSym, keys.kFp8Dynamic128Sym, block),
    }
    found = {}
    for name, (weight, activation, kernels) in asked.items():
        config = linear.FP8ScaledMMLinearLayerConfig(
            weight_quant_key=weight,
            activation_quant_key=activation,
            input_dtype=torch.bfloat16,
            out_dtype=torch.bfloat16,
            weight_shape=(1024, 1024),
        )
        try:
            chosen = linear.choose_scaled_mm_linear_kernel(config, kernels, quantization="fp8_w8a8")
        except ValueError:
            found[name] = "none"
        else:
            found[name] = str(chosen.__name__)
    return found


def fp8_expert_choices() -> dict[str, str]:
    """First backend of the FP8 MoE oracle's order whose kernels take this device, by the weights' scales."""
    from vllm.model_executor.layers.fused_moe.oracle import fp8
    from vllm.model_executor.layers.quantization.utils import quant_utils as keys

    alone = SimpleNamespace(use_deepep_v2_kernels=False, ep_size=1)
    asked = {
        "tensor": (keys.kFp8StaticTensorSym, keys.kFp8StaticTensorSym),
        "channel": (keys.kFp8StaticChannelSym, keys.kFp8DynamicTokenSym),
        "block": (keys.kFp8Static128BlockSym, keys.kFp8Dynamic128Sym),
    }
    found = {}
    for name, scheme in asked.items():
        order = fp8._get_priority_backends(SimpleNamespace(moe_parallel_config=alone), *scheme)
        # Those that another platform's package would bring cannot be imported here.
        usable = [backend for backend in order if backend.name not in ("AITER", "XPU", "HPC")]
        found[name] = next(
            (
                str(backend.name)
                for backend in usable
                for kernel in fp8.backend_to_kernel_cls(backend)
                if kernel._supports_current_device() and kernel._supports_quant_scheme(*scheme)
            ),
            "none",
        )
    return found


def cpu_rows(linear: Any) -> list[dict[str, Any]]:
    """What FP8 layers get on the CPU, without AMX and with it."""
    import torch
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUExpertsMxfp4

    def never() -> bool:
        return False

    def always() -> bool:
        return True

    rows: list[dict[str, Any]] = []
    for amx in (False, True):
        torch.cpu._is_amx_tile_supported = [never, always][amx]
        experts = {"experts": fp8_expert_choices(), "mxfp4": CPUExpertsMxfp4._supports_current_device()}
        rows.append({"amx": amx, "fp8": fp8_choices(linear), **experts})
    return rows


def main() -> None:
    """Print a list of rows."""
    # While modules load.
    gc.disable()
    sys.modules["vllm._C_stable_libtorch"] = types.ModuleType("vllm._C_stable_libtorch")
    linear = importlib.import_module("vllm.model_executor.kernels.linear")
    gdn = importlib.import_module("vllm.model_executor.layers.mamba.gdn.qwen_gdn_linear_attn")
    cuda = importlib.import_module("vllm.platforms.cuda")
    from vllm.model_executor.layers.quantization.utils.quant_utils import kNvfp4Dynamic
    from vllm.platforms.interface import DeviceCapability

    config = SimpleNamespace(
        additional_config={},
        model_config=SimpleNamespace(hf_text_config=SimpleNamespace(linear_key_head_dim=128)),
    )
    moe_choice(None)  # import every kernel class before pretending
    cpu = cpu_rows(linear)
    rows: list[dict[str, Any]] = []
    for capability in CAPABILITIES:
        for flashinfer in (False, True):
            pretend(capability, flashinfer)
            rows.append(
                {
                    "capability": capability,
                    "flashinfer": flashinfer,
                    "nvfp4_linear": type(linear.init_nvfp4_linear_kernel()).__name__,
                    "nvfp4_linear w4a16": type(linear.init_nvfp4_linear_kernel(use_a16=True)).__name__,
                    "nvfp4_moe": moe_choice(kNvfp4Dynamic),
                    "nvfp4_moe w4a16": moe_choice(None),
                    "fp8": fp8_choices(linear),
                    "gdn_prefill": gdn._resolve_gdn_prefill_backend(config)[1],
                    "attention": [
                        b.name for b in cuda._get_backend_priorities(False, DeviceCapability(*capability))
                    ],
                    "mla": cuda._get_backend_priorities(True, DeviceCapability(*capability))[0].name,
                }
            )
    print(json.dumps(rows + cpu))


if __name__ == "__main__":
    main()
