"""Kernels as programs for the CPU: their own source, thread by thread (host/block.h).

Headers of the same name in host/gb10 stand in front of the kernels' two with assembly.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"


def run(kernel: str, folder: Path, toolkit: Path, *arguments: Path, decodes: bool = False) -> str:
    """Compile ``host/<kernel>.cpp`` in ``folder``, run it, and give what it printed.

    The kernel is that of a target without, or with ``decodes`` with, the instruction that decodes E2M1.
    """
    program = folder / kernel
    places = [HERE / "host", KERNELS / "include", KERNELS, toolkit / "include", toolkit / "include" / "cccl"]
    # The template code of a grouped kernel compiles half as long again with -O2, and runs hardly faster.
    flags = ["-std=c++20", "-O1", f"-DGB10_HW_E2M1={int(decodes)}", "-include", str(HERE / "host/block.h")]
    command = [os.environ.get("CXX", "g++"), *flags, *(f"-I{place}" for place in places)]
    subprocess.run([*command, "-o", program, HERE / "host" / f"{kernel}.cpp"], check=True)
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
