"""A unit that has nothing but templates and unnamed variables is the same at each compilation."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

UNIT = """
namespace { __device__ int hidden[3]; }
template <int N> __global__ void k(int *o) { o[threadIdx.x] = hidden[threadIdx.x % 3] + N; }
template __global__ void k<3>(int *);
"""
LAUNCHER = Path(__file__).parents[3] / "nix/flashinfer/unit/compile.sh"


@pytest.fixture(scope="module")
def nvcc() -> str:
    toolkit = os.environ.get("GB10_CUDA_TOOLKIT")
    if not toolkit:
        pytest.skip("GB10_CUDA_TOOLKIT is not set: the flake's check has it")
    return f"{toolkit}/bin/nvcc"


def compiled(folder: Path, time: int, *command: str) -> bytes:
    """The object, of a source that was written at a time."""
    source = folder / "t.cu"
    source.write_text(UNIT)
    os.utime(source, (time, time))
    flags = (
        "-objtemp",
        "-gencode=arch=compute_120f,code=sm_120f",
        "-I",
        f"{Path(command[-1]).parents[1]}/include",
    )
    subprocess.run([*command, *flags, "-c", "t.cu", "-o", "t.cuda.o"], cwd=folder, check=True)
    return (folder / "t.cuda.o").read_bytes()


def test_the_same_bytes_at_each_compilation(nvcc: str, tmp_path: Path) -> None:
    first, second = (compiled(tmp_path, time, "bash", str(LAUNCHER), nvcc) for time in (1000, 2000))
    assert first == second
    assert b"gb10_unit_t_cuda_o" in first


def test_without_a_name_they_differ(nvcc: str, tmp_path: Path) -> None:
    """When this fails nvcc needs no name any more, and compile.sh can go."""
    assert compiled(tmp_path, 1000, nvcc) != compiled(tmp_path, 2000, nvcc)


def test_what_compiles_nothing_is_left_alone(tmp_path: Path) -> None:
    said = subprocess.run(
        ["bash", str(LAUNCHER), "echo", "--version", "-o", "x"], capture_output=True, text=True, check=True
    )
    assert said.stdout == "--version -o x\n"


def test_the_exit_status_is_nvccs(tmp_path: Path) -> None:
    done = subprocess.run(["bash", str(LAUNCHER), "bash", "-c", "exit 7", "-o", "x"], check=False)
    assert done.returncode == 7
