"""vLLM's block-scaled GEMM units (build.mk's target gemm) use the matrix instruction on 12.x.

``GB10_VLLM_FP4_GEMM`` names the folder that the package was installed to: its objects take 7 GB of memory
each to build, so a check of their own looks at them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cubins import MATRIX, Cubin, cubins_of, hardware_faults, has_ptx, needs_toolkit
from libraries import folder

pytestmark = needs_toolkit

GEMM_UNITS = ("nvfp4_scaled_mm_sm120_kernels", "nvfp4_blockwise_moe_kernel")


@pytest.mark.parametrize("unit", GEMM_UNITS)
def test_gemm_units_use_the_matrix_instruction(unit: str, tmp_path: Path) -> None:
    file = folder("GB10_VLLM_FP4_GEMM") / "objects" / f"{unit}.cu.o"
    cubins = cubins_of(file, tmp_path / "x")
    assert [cubin.target for cubin in cubins] == ["sm_120f"]
    # CUTLASS launches through one template; beside it there is a kernel that only prepares pointers.
    gemms = {name: sass for name, sass in cubins[0].functions.items() if "13device_kernel" in name}
    assert gemms
    assert hardware_faults([Cubin("sm_120f", gemms)], MATRIX) == []
    assert not has_ptx(file)
