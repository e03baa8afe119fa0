"""vLLM's configuration of ModelOpt NVFP4 checkpoints, as it has to be for us.

It keeps vLLM's name: a checkpoint finds it by that name, and models ask for the name (Qwen3-Next leaves
`mtp.fc` alone only under `modelopt_fp4`).
"""

import torch
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.modelopt import ModelOptNvFp4Config


class NvFp4Config(ModelOptNvFp4Config):  # type: ignore[misc]  # vLLM is untyped for mypy
    """vLLM's own, with one more dtype of activations."""

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [*super().get_supported_act_dtypes(), torch.float32]


def install() -> None:
    """Let NVFP4 checkpoints run with float32 activations."""
    register_quantization_config("modelopt_fp4")(NvFp4Config)
