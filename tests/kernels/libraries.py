"""The built libraries, by environment variables that the Nix checks set.

``GB10_CUDA_TOOLKIT``: the toolkit's folder. ``GB10_KERNELS`` and ``GB10_KERNELS_SPARSE24``: the folder that
each library was installed to, with ``_SOFTWARE`` at the end that of the software route. A test whose part is
missing is skipped, and says which.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

ROUTES = {"hardware": "", "software": "_SOFTWARE"}


def folder(variable: str) -> Path:
    named = os.environ.get(variable)
    if not named:
        pytest.skip(f"{variable} is not set")
    return Path(named)


def built(name: str, route: str) -> Path:
    """A library: ``kernels`` or ``sparse24``."""
    variable = {"kernels": "GB10_KERNELS", "sparse24": "GB10_KERNELS_SPARSE24"}[name] + ROUTES[route]
    path = folder(variable) / "lib" / f"libgb10_{name}.so"
    assert path.is_file()
    return path


def instructions(toolkit: Path, library: Path, holding: bytes = b"") -> dict[str, list[str]]:
    """The instructions of each kernel of a library, by target and mangled name.

    ``holding``, part of a symbol: of those units alone that have it; to disassemble all takes half a minute.
    """
    cuobjdump = toolkit / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as scratch:
        files = [library]
        if holding:
            subprocess.run(
                [cuobjdump, "-xelf", "all", library.resolve()], check=True, capture_output=True, cwd=scratch
            )
            files = [file for file in sorted(Path(scratch).iterdir()) if holding in file.read_bytes()]
        listing = "".join(
            subprocess.run([cuobjdump, "-sass", file], check=True, capture_output=True, text=True).stdout
            for file in files
        )
    found: dict[str, list[str]] = {}
    target = name = ""
    for line in listing.splitlines():
        # A library's listing says it one way, a unit's the other.
        if arch := re.search(r"(?:arch = |\tcode for )(\w+)", line):
            target = arch[1]
        elif function := re.search(r"Function : (\S+)", line):
            name = f"{target} {function[1]}"
            found[name] = []
        elif code := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            found[name].append(code[1])
    return found


def load_without_gpu(toolkit: Path, name: str) -> None:
    """A library's operators in torch for CPU, where they refuse.

    CUDA's runtime comes from the toolkit: this torch has none.
    """
    built(name, "hardware")
    ctypes.CDLL(str(toolkit / "lib" / "libcudart.so.13"), mode=ctypes.RTLD_GLOBAL)
    from gb10.kernels.library import KERNELS, SPARSE24, load  # torch takes seconds to import

    load(KERNELS if name == "kernels" else SPARSE24)
