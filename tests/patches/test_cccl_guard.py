"""FP4 code for a generic 12.x target must not compile by accident; everything else must compile as before.

``GB10_CUDA_TOOLKIT`` names the toolkit: a folder with ``bin/nvcc``, ``include`` and ``nvvm``.
``GB10_CUTLASS_INCLUDE`` names the folder that CUTLASS's headers are in.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

TOOLKIT = os.environ.get("GB10_CUDA_TOOLKIT")
CUTLASS = os.environ.get("GB10_CUTLASS_INCLUDE")
pytestmark = pytest.mark.skipif(TOOLKIT is None, reason="GB10_CUDA_TOOLKIT is not set; this needs nvcc")

GENERIC = ("120", "121")
SPECIFIC = ("120f", "121a", "121f")
GUARD = "gb10_FP4_code_for_a_generic_12x_target"

FP4 = {
    "encode": """
#include <cuda_fp4.h>
__global__ void run(const float2* x, unsigned char* y) {
  y[threadIdx.x] = __nv_cvt_float2_to_fp4x2(x[threadIdx.x], __NV_E2M1, cudaRoundNearest);
}
""",
    "encode-after-cccl": """
#include <cuda/std/limits>
#include <cuda_fp4.h>
__global__ void run(const float* x, __nv_fp4_e2m1* y) {
  y[threadIdx.x] = __nv_fp4_e2m1(x[threadIdx.x]);
}
""",
    "decode": """
#include <cuda/std/cmath>
__global__ void run(const __nv_fp4_e2m1* x, float* y) {
  y[threadIdx.x] = static_cast<float>(x[threadIdx.x]);
}
""",
}

OTHER = {
    "plain": "__global__ void run(float* x) { x[threadIdx.x] *= 2.0f; }\n",
    "cccl": """
#include <cuda/std/cmath>
#include <cuda/std/limits>
#include <cuda/std/type_traits>
__global__ void run(float* x) {
  static_assert(cuda::std::is_floating_point_v<float>);
  x[threadIdx.x] = cuda::std::fabs(x[threadIdx.x]) + cuda::std::numeric_limits<float>::epsilon();
}
""",
    "fp4-header-unused": """
#include <cuda_fp4.h>
#include <cuda_fp8.h>
__global__ void run(float* x, __nv_fp8_e4m3* y) { y[threadIdx.x] = __nv_fp8_e4m3(x[threadIdx.x]); }
""",
    "fp4-type-carried": """
#include <cuda/std/limits>
#include <cuda_fp4.h>
__global__ void run(const __nv_fp4x4_e2m1* x, __nv_fp4x4_e2m1* y) { y[threadIdx.x] = x[threadIdx.x]; }
""",
}

ON_THE_HOST = """
#include <cuda_fp4.h>
unsigned char on_host(float x) { return __nv_cvt_float_to_fp4(x, __NV_E2M1, cudaRoundNearest); }
__global__ void run(float* x) { x[threadIdx.x] *= 2.0f; }
"""


def compile_for(target: str, source: str, folder: Path, *options: str) -> tuple[int, str]:
    """Compile ``source`` for ``target`` such as ``121a``; return nvcc's exit code and output.

    Without ``options`` only the device code is compiled, which is the faster half.
    """
    assert TOOLKIT is not None
    unit = folder / "unit.cu"
    unit.write_text(source)
    command = [f"{TOOLKIT}/bin/nvcc", "-std=c++17", "-o", str(folder / "unit.out"), *(options or ("-cubin",))]
    command += ["-gencode", f"arch=compute_{target},code=sm_{target}", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("target", GENERIC)
@pytest.mark.parametrize("unit", FP4)
def test_fp4_for_a_generic_target_is_one_clear_error(unit: str, target: str, tmp_path: Path) -> None:
    code, output = compile_for(target, FP4[unit], tmp_path)
    errors = [line for line in output.splitlines() if re.search(r"\berror\b", line)]
    assert code != 0
    assert len(errors) == 1, output
    assert GUARD in errors[0]
    assert "120f" in errors[0] and "GB10_FP4_SOFTWARE" in errors[0]


@pytest.mark.parametrize("target", GENERIC)
@pytest.mark.parametrize("unit", FP4)
def test_the_emulation_can_be_asked_for(unit: str, target: str, tmp_path: Path) -> None:
    assert compile_for(target, FP4[unit], tmp_path, "-cubin", "-DGB10_FP4_SOFTWARE=1") == (0, "")


def test_relocatable_code_is_refused_too(tmp_path: Path) -> None:
    code, output = compile_for("121", FP4["encode"], tmp_path, "-dc")
    assert code != 0
    assert GUARD in output


@pytest.mark.parametrize("target", SPECIFIC)
@pytest.mark.parametrize("unit", FP4)
def test_fp4_compiles_where_the_instruction_exists(unit: str, target: str, tmp_path: Path) -> None:
    assert compile_for(target, FP4[unit], tmp_path) == (0, "")


@pytest.mark.parametrize("target", ["90", *GENERIC, *SPECIFIC])
@pytest.mark.parametrize("unit", OTHER)
def test_other_code_compiles_everywhere(unit: str, target: str, tmp_path: Path) -> None:
    assert compile_for(target, OTHER[unit], tmp_path) == (0, "")


@pytest.mark.parametrize("unit", FP4)
def test_older_targets_keep_their_emulation(unit: str, tmp_path: Path) -> None:
    assert compile_for("90", FP4[unit], tmp_path) == (0, "")


def test_conversions_on_the_host_compile(tmp_path: Path) -> None:
    assert compile_for("121", ON_THE_HOST, tmp_path, "-c") == (0, "")


GEMM = """
#include <cute/tensor.hpp>
#include <cutlass/device_kernel.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
namespace c = cutlass;
using Out = c::bfloat16_t;
using Row = c::layout::RowMajor;
using Column = c::layout::ColumnMajor;
using Block = cute::Shape<cute::_128, cute::_128, BLOCK_K>;
using One = cute::Shape<cute::_1, cute::_1, cute::_1>;
using Epilogue = c::epilogue::collective::CollectiveBuilder<
    c::arch::ARCH, c::arch::OP_CLASS, Block, One, c::epilogue::collective::EpilogueTileAuto, float, float,
    Out, Row, 8, Out, Row, 8, c::epilogue::collective::EpilogueScheduleAuto>::CollectiveOp;
using Mainloop = c::gemm::collective::CollectiveBuilder<
    c::arch::ARCH, c::arch::OP_CLASS, ELEMENT, Row, ALIGNMENT, ELEMENT, Column, ALIGNMENT, float, Block, One,
    c::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(Epilogue::SharedStorage))>,
    c::gemm::KernelTmaWarpSpecializedCooperative>::CollectiveOp;
using Kernel = c::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop, Epilogue, void>;
template __global__ void c::device_kernel<Kernel>(__grid_constant__ Kernel::Params const);
"""
NVFP4_GEMM = (
    "-DARCH=Sm120",
    "-DOP_CLASS=OpClassBlockScaledTensorOp",
    "-DELEMENT=c::nv_float4_t<c::float_e2m1_t>",
    "-DALIGNMENT=32",
    "-DBLOCK_K=cute::_128",
)
BF16_GEMM_FOR_HOPPER = (
    "-DARCH=Sm90",
    "-DOP_CLASS=OpClassTensorOp",
    "-DELEMENT=c::bfloat16_t",
    "-DALIGNMENT=8",
    "-DBLOCK_K=cute::_64",
)
needs_cutlass = pytest.mark.skipif(CUTLASS is None, reason="GB10_CUTLASS_INCLUDE is not set")


def compile_gemm(target: str, folder: Path, *options: str) -> tuple[int, str]:
    assert CUTLASS is not None
    return compile_for(target, GEMM, folder, "--expt-relaxed-constexpr", "-isystem", CUTLASS, *options)


@needs_cutlass
@pytest.mark.parametrize(("target", "software"), [("121", ()), ("120", ("-DGB10_FP4_SOFTWARE=1",))])
def test_an_nvfp4_gemm_for_a_generic_target_is_one_clear_error(
    target: str, software: tuple[str, ...], tmp_path: Path
) -> None:
    code, output = compile_gemm(target, tmp_path, "-ptx", *NVFP4_GEMM, *software)
    errors = [line for line in output.splitlines() if ": error:" in line]
    assert code != 0
    assert len(errors) == 1, output
    assert "gb10: SM120 tensor-core kernel for a generic 12.x target; compile for 120f" in errors[0]


@needs_cutlass
def test_an_nvfp4_gemm_is_not_refused_where_the_instruction_exists(tmp_path: Path) -> None:
    """The compiler's front end alone (nvcc then misses its output): code for it takes a minute and 7 GiB.

    tests/kernels/test_vllm_fp4_gemm.py looks at the machine code of such GEMMs.
    """
    refused, accepted = (
        compile_gemm(target, tmp_path, "-ptx", "-Xcicc", "--no_code_gen", *NVFP4_GEMM)[1]
        for target in ("121", "121a")
    )
    assert refused.count("error:") == 1, refused
    assert accepted == ""


@needs_cutlass
def test_a_hopper_gemm_may_be_built_for_a_generic_target_beside_others(tmp_path: Path) -> None:
    code, output = compile_gemm("121", tmp_path, "-ptx", *BF16_GEMM_FOR_HOPPER)
    assert code == 0, output
