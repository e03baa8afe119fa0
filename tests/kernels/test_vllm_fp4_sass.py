"""The machine code of vLLM's FP4 quantisation: FP4 instructions in one build, none in the other.

``GB10_VLLM_FP4_OBJECTS`` names a folder with what build.mk of vllm_fp4 left in its OUT: ``hardware/``
(ROUTE=hardware) and ``software/`` (ROUTE=software).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from cubins import (
    ENCODE,
    HARDWARE_TARGETS,
    MATRIX,
    SOFTWARE_TARGETS,
    Cubin,
    cubins_of,
    hardware_faults,
    has_ptx,
    needs_toolkit,
    software_faults,
    tool,
)

OBJECTS = os.environ.get("GB10_VLLM_FP4_OBJECTS")
pytestmark = needs_toolkit
needs_objects = pytest.mark.skipif(OBJECTS is None, reason="GB10_VLLM_FP4_OBJECTS is not set")

QUANT_UNITS = ("nvfp4_quant_kernels", "activation_nvfp4_quant_fusion_kernels", "nvfp4_experts_quant")


def objects(route: str) -> list[Path]:
    assert OBJECTS is not None
    return sorted(Path(OBJECTS, route).glob("*.cu.o"))


@needs_objects
@pytest.mark.parametrize("unit", QUANT_UNITS)
def test_hardware_quant_units_use_the_conversion(unit: str, tmp_path: Path) -> None:
    assert OBJECTS is not None
    file = Path(OBJECTS, "hardware", f"{unit}.cu.o")
    cubins = cubins_of(file, tmp_path / "x")
    assert {cubin.target for cubin in cubins} == HARDWARE_TARGETS
    assert all(cubin.functions for cubin in cubins)
    assert hardware_faults(cubins, ENCODE) == []
    assert not has_ptx(file)


@needs_objects
def test_no_hardware_object_is_for_a_generic_target(tmp_path: Path) -> None:
    files = objects("hardware")
    assert {file.name.removesuffix(".cu.o") for file in files} >= set(QUANT_UNITS)
    faults = {file.name: hardware_faults(cubins_of(file, tmp_path / file.name), None) for file in files}
    assert {name: list_ for name, list_ in faults.items() if list_} == {}


@needs_objects
def test_software_objects_hold_no_fp4_instruction(tmp_path: Path) -> None:
    files = objects("software")
    assert {file.name.removesuffix(".cu.o") for file in files} >= set(QUANT_UNITS)
    for file in files:
        cubins = cubins_of(file, tmp_path / file.name)
        assert cubins, file
        assert software_faults(cubins) == [], file
        assert not has_ptx(file)


@needs_objects
@pytest.mark.parametrize("route", ["hardware", "software"])
def test_library_holds_the_targets_of_its_route(route: str, tmp_path: Path) -> None:
    assert OBJECTS is not None
    library = Path(OBJECTS, route, "libgb10_vllm_fp4.so")
    cubins = cubins_of(library, tmp_path / "x")
    wanted = HARDWARE_TARGETS if route == "hardware" else SOFTWARE_TARGETS
    assert {cubin.target for cubin in cubins} == wanted
    encodes = sum(cubin.count(re.escape(ENCODE)) for cubin in cubins)
    assert (encodes > 0) == (route == "hardware")
    assert not has_ptx(library)


PLAIN = "__global__ void run(float* x) { x[threadIdx.x] *= 2.0f; }\n"
CONVERSION = """
__global__ void run(float2 const* x, unsigned short* y) {
  asm("{ .reg .b8 b; cvt.rn.satfinite.e2m1x2.f32 b, %1, %2; mov.b16 %0, {b, b}; }"
      : "=h"(y[threadIdx.x]) : "f"(x[threadIdx.x].x), "f"(x[threadIdx.x].y));
}
"""
PRODUCT = """
__global__ void run(float* d, unsigned const* a) {
  unsigned const* s = a + 8 * threadIdx.x;
  float c[4] = {};
  asm volatile("mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X"
      ".f32.e2m1.e2m1.f32.ue4m3 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, {%10}, {0, 0}, {%11}, {0, 0};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(s[0]), "r"(s[1]), "r"(s[2]), "r"(s[3]), "r"(s[4]), "r"(s[5]), "r"(s[6]), "r"(s[7]));
  for (int i = 0; i < 4; ++i) d[4 * threadIdx.x + i] = c[i];
}
"""


def planted(source: str, compute: str, machine: str, folder: Path, *options: str) -> list[Cubin]:
    """Cubins of a small kernel that is built as the real ones must not be."""
    unit, fat = folder / "planted.cu", folder / "planted.fatbin"
    unit.write_text(source)
    pair = f"arch=compute_{compute},code=sm_{machine}"
    tool("nvcc", "-fatbin", "-gencode", pair, *options, "-o", fat, unit)
    return cubins_of(fat, folder / "x")


@pytest.mark.parametrize("generic", ["120", "121"])
def test_generic_object_is_found(generic: str, tmp_path: Path) -> None:
    found = planted(PLAIN, generic, generic, tmp_path)
    assert hardware_faults(found, None) == [f"built for sm_{generic}"]


def test_unit_without_the_conversion_is_found(tmp_path: Path) -> None:
    found = planted(PLAIN, "120f", "120f", tmp_path)
    assert [fault.partition(" ")[2] for fault in hardware_faults(found, ENCODE)] == [f"is without {ENCODE}"]


@pytest.mark.parametrize("source", [CONVERSION, PRODUCT], ids=["conversion", "product"])
def test_instruction_in_the_software_build_is_found(source: str, tmp_path: Path) -> None:
    found = planted(source, "120f", "120f", tmp_path)
    assert hardware_faults(found, ENCODE if source is CONVERSION else MATRIX) == []
    assert software_faults(found) == ["built for sm_120f", "an FP4 instruction"]


def test_ptx_is_found(tmp_path: Path) -> None:
    planted(PLAIN, "90", "90", tmp_path, "-gencode", "arch=compute_90,code=compute_90")
    assert has_ptx(tmp_path / "planted.fatbin")
