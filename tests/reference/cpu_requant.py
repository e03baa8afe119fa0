"""Requantisation at load in vLLM's CPU engine, on the stand-ins for the kernels.

GB10_DENSE and GB10_HEAD say to what. On a GPU the engine installs it; a CPU has no kernels for it.
"""

import os

from gb10.vllm_plugin.cuda import requant
from gb10.vllm_plugin.cuda.settings import DENSE_NAME, HEAD_NAME, CudaMode, Format
from reference import cpu_operators


def install() -> None:
    """Turn it on in this process."""
    cpu_operators.install()
    requant.install(CudaMode(Format(os.environ[DENSE_NAME]), Format(os.environ[HEAD_NAME])))
