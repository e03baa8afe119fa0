"""Models are looked at in the process that asks: on the CPU, where engine processes are forked."""

from collections.abc import Callable
from typing import Any


def _here(fn: Callable[[], Any]) -> Any:
    return fn()


def install() -> None:
    """Let vLLM's registry import a model's module here. Other platforms stay as they are."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = _here
