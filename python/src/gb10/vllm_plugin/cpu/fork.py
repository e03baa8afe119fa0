"""Forked engine processes on the CPU: they share the modules that are already loaded."""

import os
from typing import Any


def install() -> None:
    """Keep vLLM's CPU platform from going back to spawn. Other platforms stay as they are."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    platform = type(current_platform)
    update = platform.check_and_update_config.__func__

    def check_and_update_config(cls: type, vllm_config: Any) -> None:
        update(cls, vllm_config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    platform.check_and_update_config = classmethod(check_and_update_config)
