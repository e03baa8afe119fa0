"""What the kernels' tests without a GPU need, by environment variables that the Nix check sets.

``GB10_CUDA_TOOLKIT``: the toolkit's folder. ``GB10_KERNELS``, ``GB10_KERNELS_SOFTWARE``: the built library of
each route. A test whose part is missing is skipped, and says which.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
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


@pytest.fixture(scope="session", params=["hardware", "software"])
def machine_code(request: pytest.FixtureRequest, toolkit: Path) -> dict[str, list[str]]:
    """The instructions of each kernel of a route's library, by target and mangled name."""
    library = request.getfixturevalue(f"{request.param}_library")
    command = [toolkit / "bin" / "cuobjdump", "-sass", library]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, list[str]] = {}
    target = name = ""
    for line in listing.splitlines():
        if arch := re.search(r"arch = (\w+)", line):
            target = arch[1]
        elif function := re.search(r"Function : (\S+)", line):
            name = f"{target} {function[1]}"
            found[name] = []
        elif code := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            found[name].append(code[1])
    return found


@pytest.fixture(scope="session")
def operators(toolkit: Path, hardware_library: Path) -> None:
    """The operators in torch for CPU, where they refuse.

    CUDA's runtime comes from the toolkit: this torch has none.
    """
    assert hardware_library.is_file()
    ctypes.CDLL(str(toolkit / "lib" / "libcudart.so.13"), mode=ctypes.RTLD_GLOBAL)
    from gb10.kernels import load  # torch takes seconds to import

    load()
