"""What the compiler makes of the E2M1 and quantisation code, for each target: what, and how much of it."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
HARDWARE_ENCODE = "F2FP.SATFINITE.E2M1"
HARDWARE_DECODE = "F2FP.F16.E2M1.UNPACK_B"

# Each kernel loads, works, stores. What is counted is the whole kernel up to its end, less the kernel that
# loads the same eight floats and stores a word that takes four three-input operations (`baseline`), plus
# those four.
SOURCE = """
#include <gb10/e2m1.cuh>

__device__ __forceinline__ void eight(float4 const* x, float (&v)[8]) {
  float4 const a = x[2 * threadIdx.x], b = x[2 * threadIdx.x + 1];
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

extern "C" __global__ void baseline(float4 const* x, unsigned* y) {
  float v[8];
  eight(x, v);
  unsigned all = 0;
  for (int i = 0; i < 8; ++i) all ^= __float_as_uint(v[i]);
  y[threadIdx.x] = all;
}

extern "C" __global__ void encode(float4 const* x, unsigned* y) {
  float v[8];
  eight(x, v);
  y[threadIdx.x] = gb10::e2m1::encode8(v);
}

extern "C" __global__ void encode_no_nan(float4 const* x, unsigned* y) {
  float v[8];
  eight(x, v);
  y[threadIdx.x] = gb10::e2m1::encode8_no_nan(v);
}

extern "C" __global__ void decode(unsigned const* x, uint4* y) {
  unsigned out[4];
  gb10::e2m1::decode8_f16(x[threadIdx.x], out);
  y[threadIdx.x] = make_uint4(out[0], out[1], out[2], out[3]);
}
"""
BASELINE_WORK = 4


@dataclass(frozen=True)
class Target:
    virtual: str
    real: str
    hardware: bool


TARGETS = [
    Target("compute_90", "sm_90", False),
    Target("compute_120f", "sm_120f", True),
    Target("compute_121", "sm_121", False),
]


def compile_to_sass(toolkit: Path, target: Target, source: Path, folder: Path) -> dict[str, list[str]]:
    """The instructions of each function, in order, the padding after the last one left out."""
    cubin = folder / f"{source.stem}.{target.real}.cubin"
    routes = [] if target.hardware or target.real == "sm_90" else ["-DGB10_FP4_SOFTWARE"]
    gencode = ["-gencode", f"arch={target.virtual},code={target.real}"]
    include = [f"-I{KERNELS}/include", f"-I{toolkit}/include", f"-I{toolkit}/include/cccl"]
    flags = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-cubin"]
    command = [f"{toolkit}/bin/nvcc", *flags, *routes, *gencode, *include, "-o", str(cubin), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    text = subprocess.run(
        [f"{toolkit}/bin/cuobjdump", "-sass", str(cubin)], check=True, capture_output=True, text=True
    ).stdout
    functions: dict[str, list[str]] = {}
    for line in text.splitlines():
        if named := re.search(r"Function : (\S+)", line):
            functions[named[1]] = []
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)", line):
            functions[list(functions)[-1]].append(found[1])
    return {name: code[: last_useful(code)] for name, code in functions.items()}


def last_useful(code: list[str]) -> int:
    """Past the last instruction that is not padding (NOP, and the branch to itself before it)."""
    end = len(code)
    while end and code[end - 1] in {"NOP", "BRA"}:
        end -= 1
    return end


@pytest.fixture(scope="module", params=TARGETS, ids=lambda target: str(target.real))
def target(request: pytest.FixtureRequest) -> Target:
    assert isinstance(request.param, Target)
    return request.param


@pytest.fixture(scope="module")
def small(target: Target, toolkit: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("sass")
    source = folder / "small.cu"
    source.write_text(SOURCE)
    return compile_to_sass(toolkit, target, source, folder)


def test_the_route_is_the_targets(target: Target, small: dict[str, list[str]]) -> None:
    encodes = [name for name in small["encode"] if name.startswith(HARDWARE_ENCODE)]
    decodes = [name for name in small["decode"] if name.startswith(HARDWARE_DECODE)]
    assert (len(encodes), len(decodes)) == ((4, 4) if target.hardware else (0, 0))
    assert any("E2M1" in name for code in small.values() for name in code) == target.hardware


def test_instructions_for_eight_values(target: Target, small: dict[str, list[str]]) -> None:
    """Aims: at most 17 for the whole kernel with the instruction, at most 110 without."""
    whole, bare = len(small["encode"]), len(small["baseline"])
    encode = whole - bare + BASELINE_WORK
    no_nan = len(small["encode_no_nan"]) - bare + BASELINE_WORK
    print(f"\n{target.real}: kernel {whole}, of it encode and pack {encode}; without NaN {no_nan}")
    print(dict(Counter(small["encode"])))
    assert whole <= (17 if target.hardware else 110)
    assert (encode, no_nan) == (4, 4) if target.hardware else encode <= 80 and no_nan < encode
    assert not [name for name in small["encode"] if name.startswith(("BRA", "BSSY", "CALL"))]


# The units of the streaming multiprocessor that take a warp's instruction only every second cycle.
HALF_RATE = (
    "LOP3",
    "SHF",
    "FMNMX",
    "VIMNMX",
    "IADD3",
    "LEA",
    "PRMT",
    "ISETP",
    "FSETP",
    "SEL",
    "FSEL",
    "PLOP3",
    "HMNMX2",
    "VIADD",
    "F2FP",
    "MOV",
)
# An H200 moves 41 bytes for 16 bf16 values (73 for f32 or gated) in the time of 376 (670) instructions a
# lane, 188 (335) of them half rate.
BUDGETS = {"plain": (376, 188), "wide": (670, 335)}


def kind_of(mangled: str) -> tuple[str, str]:
    """(dtype, layout and source) of a kernel's name."""
    dtype = "bf16" if "bfloat16" in mangled else "f16" if "6__half" in mangled else "f32"
    if "flat_kernel" in mangled:
        return dtype, "linear"
    layout = {"0": "linear", "1": "swizzled", "2": "experts"}[re.findall(r"LayoutE(\d)", mangled)[0]]
    return dtype, layout + (" gated" if "ELb1E" in mangled else "")


def test_quantisation_fits_the_memorys_pace(target: Target, toolkit: Path, tmp_path: Path) -> None:
    """Counts up to the last store: more than a thread runs, as the call of the long way is in it."""
    functions = compile_to_sass(toolkit, target, KERNELS / "quantize" / "quantize.cu", tmp_path)
    kernels = {
        kind_of(name): code for name, code in functions.items() if re.search("(flat|tile)_kernel", name)
    }
    assert len(kernels) == 15
    for (dtype, layout), code in sorted(kernels.items()):
        end = 1 + max(i for i, name in enumerate(code) if name.startswith("STG"))
        half = sum(name.startswith(HALF_RATE) for name in code[:end])
        blocks = 2 if (dtype, layout) == ("f32", "linear") else 4  # of 16 values, that a thread does
        budget = BUDGETS["wide" if dtype == "f32" or "gated" in layout else "plain"]
        whole, ceiling = (blocks * each for each in budget)
        print(f"{target.real} {dtype} {layout}: {end} of {whole}, half rate {half} of {ceiling}")
        assert end <= whole and half <= ceiling
        assert not [name for name in code if name.startswith(("LDL", "STL"))]
        assert any(name.startswith(HARDWARE_ENCODE) for name in code[:end]) == target.hardware
