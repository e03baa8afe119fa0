"""The number headers on the GPU, for every input: all 2^32 floats, all scales, all mantissas of a divisor."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"

# Capability to the targets to try: what nvcc calls the machine code, and whether it has the FP4 instructions.
TARGETS: dict[tuple[int, int], list[tuple[str, str, list[str]]]] = {
    (9, 0): [("compute_90", "sm_90", [])],
    (12, 0): [("compute_120f", "sm_120f", []), ("compute_120", "sm_120", ["-DGB10_FP4_SOFTWARE"])],
    (12, 1): [("compute_120f", "sm_120f", []), ("compute_121", "sm_121", ["-DGB10_FP4_SOFTWARE"])],
}


def compiler() -> str:
    """nvcc: `GB10_NVCC`, or that of the search path."""
    found = os.environ.get("GB10_NVCC") or shutil.which("nvcc")
    if not found:
        pytest.skip("no nvcc: GB10_NVCC is not set and PATH has none")
    return found


@pytest.mark.parametrize("route", [0, 1])
def test_the_headers_agree_with_their_oracles(route: int, tmp_path: Path) -> None:
    capability = torch.cuda.get_device_capability()
    targets = TARGETS.get(capability, [])
    if route >= len(targets):
        pytest.skip(f"compute capability {capability} has no route {route}")
    virtual, real, defines = targets[route]
    built = tmp_path / "e2m1_device"
    include = [f"-I{KERNELS}/include", f"-I{KERNELS}"]
    command = [compiler(), "-std=c++20", "-O3", "--expt-relaxed-constexpr", *defines, *include]
    target = ["-gencode", f"arch={virtual},code={real}"]
    made = subprocess.run(
        [*command, *target, "-o", str(built), str(HERE / "e2m1_device.cu")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    done = subprocess.run([built], capture_output=True, text=True, check=False)
    rows = [line.split() for line in done.stdout.splitlines()]
    names = {"encode_software", "encode8", "encode8_no_nan", "decode8_f16", "ue4m3_encode", "division"}
    assert {row[0] for row in rows} == names, done.stderr
    assert [row for row in rows if int(row[1]) <= 0 or int(row[2]) != 0] == []
    assert done.returncode == 0
