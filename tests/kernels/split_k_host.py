"""The kernels on `split_k.cuh` as programs for the CPU: their own source, with the PTX in it replaced."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"

_SHARED = (
    r"extern __shared__ __align__\(16\) unsigned char shared\[\];",
    "auto* const shared = reinterpret_cast<unsigned char*>(host::shared_memory);",
)
_REPLACED = {
    "include/gb10/w4a16.cuh": [
        (r"asm\(\"ld\.global\S*\.v4\.u32.*?\);", "std::memcpy(&v, address, 16);"),
        (r"asm\(\"ld\.global\S*\.u32.*?\);", "std::memcpy(&v, address, 4);"),
    ],
    "fp8_gemv/fp8_gemv.cuh": [_SHARED],
    "sparse24/sparse24.cuh": [_SHARED],
    "sparse24/moe.cuh": [_SHARED, (r"asm volatile\(\"ld\.relaxed.*?\);", "v = *address;")],
    "sparse24/teams.cuh": [
        (r"asm volatile\(\"bar\.sync.*?\);", "host::meet(barrier, threads);"),
        (r"asm volatile\(\"bar\.arrive.*?\);", "host::arrive(barrier, threads);"),
    ],
    "sparse24/tile.cuh": [
        (r"asm\(\"ld\.global\S*\.v2\.u32.*?\);", "std::memcpy(&v, address, 8);"),
        (r"asm\(\"mma\.sp::.*?\);", "host::mma_sp<__half>(c, a, b, metadata, kSelector);"),
    ],
}


def build(kernel: str, folder: Path, toolkit: Path) -> Path:
    """Compile ``host/<kernel>.cpp`` in ``folder`` and give the program."""
    files = ("fp8_gemv.cuh", "fp8_gemv.h", "split_k.cuh")
    sources = [f"include/gb10/{name}" for name in ("arch.cuh", "e2m1.cuh", "w4a16.cuh")]
    sources += [f"fp8_gemv/{name}" for name in files]
    sources += [
        f"sparse24/{name}"
        for name in ("sparse24.cuh", "sparse24.h", "moe.cuh", "moe.h", "teams.cuh", "tile.cuh")
    ]
    for source in sources:
        text = (KERNELS / source).read_text()
        for pattern, replacement in _REPLACED.get(source, []):
            text, times = re.subn(pattern, replacement, text, flags=re.DOTALL)
            assert times >= 1, (source, pattern)
        target = folder / source.removeprefix("include/")
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)
    for replacement_file in ("block.h", "mma.cuh", "launch.cuh"):
        shutil.copy(HERE / "host" / replacement_file, folder / "gb10")
    program = folder / f"run_{kernel}"
    headers = [f"-I{folder}", f"-I{HERE / 'host'}", f"-I{toolkit}/include", f"-I{toolkit}/include/cccl"]
    source_file = HERE / "host" / f"{kernel}.cpp"
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, "-std=c++20", "-O2", *headers, "-o", program, source_file], check=True)
    return program
