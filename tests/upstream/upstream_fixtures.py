"""What vLLM's own tests take from their `conftest.py`, which needs libraries that this environment lacks."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from vllm.platforms import current_platform

# One file imports vllm._C by name, and with it instructions that this processor may lack. vLLM itself chooses
# a library that the processor can run, whose operators are the same.
current_platform.import_kernels()
sys.modules.setdefault("vllm._C", ModuleType("vllm._C"))

# Until all modules are loaded, as in tests/conftest.py.
gc.disable()


def pytest_collection_finish() -> None:
    """What is loaded is looked at no more: vLLM thaws it and collects garbage after each test of layers."""
    gc.freeze()
    setattr(gc, "unfreeze", lambda: None)  # noqa: B010 (mypy)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def cpu_kernels() -> None:
    """Put the CPU's functions in the place of Triton's kernels, as the CPU worker does when it starts."""
    current_platform.register_triton_kernel_overrides()


@pytest.fixture
def dist_init(tmp_path: Path) -> Iterator[None]:
    """Process groups of one process, and a configuration."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )

    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(
            world_size=1,
            rank=0,
            local_rank=0,
            distributed_init_method=f"file://{tmp_path / 'store'}",
            backend="gloo",
        )
        initialize_model_parallel(1, 1)
        yield
    cleanup_dist_env_and_memory()
