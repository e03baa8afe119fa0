"""Ray on the CPU: a resource of Ray's by which ranks are placed, and workers that need no other."""

from typing import Any

from vllm.platforms.cpu import CpuPlatform
from vllm.v1.executor import ray_executor_v2
from vllm.v1.executor.ray_executor_v2 import RayWorkerProc

RESOURCE = "vllm_cpu"
"""One for each rank that a host takes: ``ray start --resources '{"vllm_cpu": 1}'``."""


def _place(_: Any) -> tuple[str, list[int]]:
    """The node, and no accelerators: Ray lists those of its own kinds alone."""
    return ray_executor_v2.ray.get_runtime_context().get_node_id(), []


CpuRayWorkerProc: Any = type(
    "CpuRayWorkerProc",
    (RayWorkerProc,),
    {"__module__": __name__, "get_node_and_physical_gpu_ids": _place},
)
"""A rank that has no accelerator. Ray imports this module for it, before vLLM loads plug-ins there."""


def install() -> None:
    """Give the platform its resource, and the executor these workers."""
    if not CpuPlatform.ray_device_key:
        CpuPlatform.ray_device_key = RESOURCE
    ray_executor_v2.RayWorkerProc = CpuRayWorkerProc
