"""Ray on the CPU: a resource of Ray's by which ranks are placed, and workers that need no other."""

from functools import wraps

from vllm.platforms.cpu import CpuPlatform
from vllm.v1.executor import ray_executor_v2
from vllm.v1.executor.ray_executor_v2 import RayWorkerProc

RESOURCE = "vllm_cpu"
"""One for each rank that a host takes: ``ray start --resources '{"vllm_cpu": 1}'``."""


class CpuRayWorkerProc(RayWorkerProc):  # type: ignore[misc]
    """A rank that has no accelerator. Ray imports this module for it, before vLLM loads plug-ins there."""

    @wraps(RayWorkerProc.get_node_and_physical_gpu_ids)
    def get_node_and_physical_gpu_ids(self) -> tuple[str, list[int]]:
        """The node, and no accelerators: Ray lists those of its own kinds alone."""
        return ray_executor_v2.ray.get_runtime_context().get_node_id(), []


def install() -> None:
    """Give the platform its resource, and the executor these workers."""
    if not CpuPlatform.ray_device_key:
        CpuPlatform.ray_device_key = RESOURCE
    ray_executor_v2.RayWorkerProc = CpuRayWorkerProc
