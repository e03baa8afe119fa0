"""What the kernels' tests without a GPU need, by environment variables that the Nix check sets.

``GB10_CUDA_TOOLKIT``: the toolkit's folder. ``GB10_KERNELS``, ``GB10_KERNELS_SOFTWARE``: the built library of
each route. A test whose part is missing is skipped, and says which.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest


def folder(variable: str) -> Path:
    named = os.environ.get(variable)
    if not named:
        pytest.skip(f"{variable} is not set")
    return Path(named)


@pytest.fixture(scope="session")
def toolkit() -> Path:
    return folder("GB10_CUDA_TOOLKIT")


@pytest.fixture(scope="session")
def hardware_library() -> Path:
    return folder("GB10_KERNELS") / "lib" / "libgb10_kernels.so"


@pytest.fixture(scope="session")
def software_library() -> Path:
    return folder("GB10_KERNELS_SOFTWARE") / "lib" / "libgb10_kernels.so"


@pytest.fixture(scope="session")
def operators(toolkit: Path, hardware_library: Path) -> None:
    """The operators in torch for CPU, where they refuse.

    CUDA's runtime comes from the toolkit: this torch has none.
    """
    assert hardware_library.is_file()
    ctypes.CDLL(str(toolkit / "lib" / "libcudart.so.13"), mode=ctypes.RTLD_GLOBAL)
    from gb10.kernels import load  # torch takes seconds to import

    load()
