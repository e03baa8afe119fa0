"""Ray on the CPU: the platform has a resource of Ray's, and Ray finds the workers in a module of ours."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.platforms import current_platform

if not current_platform.is_cpu():
    pytest.skip("needs vLLM's CPU platform", allow_module_level=True)

PLACES = """
import pickle
from types import SimpleNamespace
from vllm.platforms import current_platform
from vllm.v1.executor import ray_executor_v2
from gb10.vllm_plugin import patches
assert current_platform.ray_device_key == ""
patches.apply("ray")
from gb10.vllm_plugin.cpu import ray
assert current_platform.ray_device_key == ray.RESOURCE
asked = ray_executor_v2.RayExecutorV2._get_actor_resource_kwargs()
assert asked == {"num_gpus": 0, "resources": {"vllm_cpu": 1.0}}, asked
worker = ray_executor_v2.RayWorkerProc
assert worker.__module__ == "gb10.vllm_plugin.cpu.ray" and pickle.loads(pickle.dumps(worker)) is worker
context = SimpleNamespace(get_node_id=lambda: "n1")
ray_executor_v2.ray = SimpleNamespace(get_runtime_context=lambda: context)
assert worker.get_node_and_physical_gpu_ids(object.__new__(worker)) == ("n1", [])
"""

WITHOUT = """
import importlib.util
from vllm.platforms import current_platform
import gb10.vllm_plugin as plugin
from gb10.vllm_plugin import patches
plugin.register()
assert patches.applied("ray") == (importlib.util.find_spec("ray") is not None)
"""


def _run(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120 * int(os.environ.get("GB10_TEST_SLOWNESS", "1")),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_where_ranks_are_placed() -> None:
    _run(PLACES)


def test_nothing_is_changed_where_ray_is_not_installed() -> None:
    _run(WITHOUT)
