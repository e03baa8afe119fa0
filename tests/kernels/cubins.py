"""The machine code inside of objects and libraries of vLLM's FP4 units, and what is wrong with it.

``GB10_CUDA_TOOLKIT`` names the toolkit. A cubin's name says sm_120 for sm_120 and for sm_120f. What it was
assembled for is in a note of ptxas.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

TOOLKIT = os.environ.get("GB10_CUDA_TOOLKIT")
needs_toolkit = pytest.mark.skipif(TOOLKIT is None, reason="GB10_CUDA_TOOLKIT is not set")

ENCODE = "F2FP.SATFINITE.E2M1"
MATRIX = "OMMA.SF"
HARDWARE_TARGETS = {"sm_90", "sm_120f"}
SOFTWARE_TARGETS = {"sm_121"}


@dataclass(frozen=True)
class Cubin:
    """The machine code of one unit for one target."""

    target: str
    functions: dict[str, str]
    """Name of each kernel, and its SASS."""

    def without(self, instruction: str) -> list[str]:
        return [name for name, sass in self.functions.items() if instruction not in sass]

    def count(self, pattern: str) -> int:
        return sum(len(re.findall(pattern, sass)) for sass in self.functions.values())


def tool(name: str, *arguments: str | Path, cwd: Path | None = None) -> str:
    command = [f"{TOOLKIT}/bin/{name}", *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd)
    return done.stdout


def cubins_of(file: Path, scratch: Path, names: str = "all", holding: bytes = b"") -> list[Cubin]:
    """The cubins inside of an object, a fat binary or a library, by default every one.

    ``names``: those with it in their names, such as ``sm_120.``; ``holding``: those with these bytes, part of
    a symbol. The rest of a large library is not disassembled, which takes a second for each unit.
    """
    scratch.mkdir(parents=True)
    tool("cuobjdump", "-xelf", names, file.resolve(), cwd=scratch)
    cubins = []
    for cubin in sorted(scratch.iterdir()):
        if holding not in cubin.read_bytes():
            continue
        target = re.search(rb"-arch (sm_\w+)", cubin.read_bytes())
        assert target, f"{cubin.name} does not say what it was assembled for"
        parts = re.split(r"^\s*Function : (\S+)$", tool("cuobjdump", "-sass", cubin), flags=re.MULTILINE)
        functions = dict(zip(parts[1::2], parts[2::2], strict=True))
        cubins.append(Cubin(target.group(1).decode(), functions))
    return cubins


def has_ptx(file: Path) -> bool:
    return "PTX file" in tool("cuobjdump", "-lptx", file)


def hardware_faults(cubins: list[Cubin], instruction: str | None) -> list[str]:
    """What is wrong with a unit of a hardware build whose 12.x kernels must all hold ``instruction``."""
    faults = [f"built for {c.target}" for c in cubins if c.target not in HARDWARE_TARGETS]
    for cubin in cubins:
        if cubin.target == "sm_90":
            if cubin.count(r"\bF2FP\S*E2M1|\bOMMA\b"):
                faults.append("an FP4 instruction for sm_90")
        elif instruction:
            faults += [f"{name} is without {instruction}" for name in cubin.without(instruction)]
    return faults


def software_faults(cubins: list[Cubin]) -> list[str]:
    """What is wrong with a unit of the software build."""
    faults = [f"built for {c.target}" for c in cubins if c.target not in SOFTWARE_TARGETS]
    return faults + ["an FP4 instruction" for c in cubins if c.count(r"\bF2FP\S*E2M1|\bOMMA\b")]
