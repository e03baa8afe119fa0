"""One Triton cache for all modes of an engine, and one of Inductor's that outlives the server."""

import os
from pathlib import Path

import vllm.envs

_FOLDERS = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
"""Folders of vLLM's, by the variable that names them."""


def install() -> None:
    """Name the caches that the user has not named."""
    for name, folder in _FOLDERS.items():
        if not os.environ.get(name):
            os.environ[name] = str(Path(vllm.envs.VLLM_CACHE_ROOT) / folder)
