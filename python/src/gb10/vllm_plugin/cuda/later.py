"""Our engine's changes wait for the process that loads a model.

vLLM imports no model in its server's process: some of their modules ask the GPU for its name, which makes a
CUDA context there and keeps vLLM from forking. What has to be known when the configuration is made is done at
once.
"""

import functools
from typing import Any

from vllm.config import CompilationConfig
from vllm.model_executor.model_loader import BaseModelLoader

from gb10.vllm_plugin import patches

SPLITTING = ("vllm::gb10_gdn_core", "vllm::gb10_attention")
"""Our attention operators: each splits graphs of batches that cannot be captured (cuda/layers/)."""


def install() -> None:
    """Tell vLLM of our attention operators, and apply the room `engine` when the first model is loaded."""
    for operator in SPLITTING:
        if operator not in CompilationConfig._attention_ops:
            CompilationConfig._attention_ops.append(operator)
    stock = BaseModelLoader.load_model

    @functools.wraps(stock)
    def load_model(self: Any, *arguments: Any, **more: Any) -> Any:
        if patches.applied("engine"):
            return stock(self, *arguments, **more)
        patches.apply("engine")
        # By its name: the room has put itself around this function.
        return BaseModelLoader.load_model(self, *arguments, **more)

    BaseModelLoader.load_model = load_model
