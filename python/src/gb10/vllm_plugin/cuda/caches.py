"""One Triton cache for all modes of an engine, so that a kernel is compiled and tuned once."""

import os
from pathlib import Path

import vllm.envs

NAME = "TRITON_CACHE_DIR"


def install() -> None:
    """Name Triton's cache, a folder of vLLM's, unless the user has named one."""
    if not os.environ.get(NAME):
        os.environ[NAME] = str(Path(vllm.envs.VLLM_CACHE_ROOT) / "triton")
