"""Pipeline parallel on the CPU: what a stage receives from the one before it needs a place to be put."""

from typing import Any

from vllm.v1.worker.gpu_model_runner import GPUModelRunner


def install() -> None:
    """Make that place when it is first needed, as vLLM's warm-up does (`GPUModelRunner._dummy_run`)."""
    original = GPUModelRunner.sync_and_gather_intermediate_tensors

    def sync_and_gather_intermediate_tensors(
        self: Any, num_tokens: int, intermediate_tensors: Any, sync_self: bool
    ) -> Any:
        if self.intermediate_tensors is None:
            self.intermediate_tensors = self.model.make_empty_intermediate_tensors(
                batch_size=self.max_num_tokens, dtype=self.model_config.dtype, device=self.device
            )
        return original(self, num_tokens, intermediate_tensors, sync_self)

    GPUModelRunner.sync_and_gather_intermediate_tensors = sync_and_gather_intermediate_tensors
