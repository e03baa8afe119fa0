"""What the pinned vLLM wheels hold for 12.x: scaled and grouped matrix products that run on a GB10 (12.1).

``GB10_VLLM_WHEELS`` names a folder with one folder of vLLM's libraries for each system; `cuobjdump` reads
those of any. A check of its own (`nix build .#vllm-wheel-checks`): the wheels are 640 MB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from cubins import Cubin, cubins_of, needs_toolkit
from libraries import folder

from gb10.machine.flashinfer import targets

pytestmark = needs_toolkit

LIBRARY = "_C_stable_libtorch.abi3.so"
RUNS_ON_12_1 = {"sm_120", "sm_120f", "sm_121", "sm_121f", "sm_121a"}
"""Targets whose machine code a GPU of 12.1 takes. sm_120a is 12.0 alone."""


@dataclass(frozen=True)
class Unit:
    """Kernels of CUTLASS by a part of their mangled names, and the instruction that they are made for."""

    what: str
    name: str
    instruction: str
    least: int
    """How many there are in the wheel of 0.32.0: fewer would be a shape or a type that is gone."""


HELD = (
    Unit(
        "FP8 by FP8, scales per tensor or token",
        r"MainloopSm120TmaWarpSpecializedI.*float_e4m3_t",
        "QMMA",
        16,
    ),
    Unit("FP8 by FP8, scales by block", r"cutlass_3x_gemm_fp8_blockwise.*", "QMMA", 6),
    Unit("NVFP4 by NVFP4", r"MainloopSm120TmaWarpSpecializedBlockScaled", "OMMA", 4),
    Unit("NVFP4 by NVFP4, grouped", r"GroupProblemShape.*MainloopSm120ArrayTma\w*BlockScaled", "OMMA", 1),
)

LACKING = r"GroupProblemShape.*Sm120.*float_e4m3_t"
"""Grouped FP8: vLLM 0.32.0 has its source for 9.0 and 10.0 alone, so there is nothing to build for 12.x
either. `cutlass_group_gemm_supported` says so, and FP8 experts run on Triton."""


def _systems() -> list[str]:
    place = folder("GB10_VLLM_WHEELS")
    return sorted(path.name for path in place.iterdir()) if place.is_dir() else []


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Cubin]]:
    """The units of CUTLASS for 12.x, by system."""
    found = {}
    for system in _systems():
        scratch = tmp_path_factory.mktemp(system) / "x"
        file = folder("GB10_VLLM_WHEELS") / system / LIBRARY
        found[system] = cubins_of(file, scratch, "sm_12", b"13device_kernel")
    return found


def _kernels(cubins: list[Cubin], name: str) -> list[tuple[str, str, str]]:
    """(kernel, target, SASS) of the CUTLASS kernels whose names have ``name``."""
    wanted = re.compile(r"_ZN7cutlass13device_kernel.*" + name)
    return [
        (kernel, cubin.target, sass)
        for cubin in cubins
        for kernel, sass in cubin.functions.items()
        if wanted.match(kernel)
    ]


@pytest.mark.parametrize("unit", HELD, ids=lambda unit: unit.what)
def test_units_for_12_x(unit: Unit, cubins: dict[str, list[Cubin]]) -> None:
    """Each has its matrix instruction, so none is the empty body of a kernel that was guarded away."""
    assert cubins
    for system, held in cubins.items():
        kernels = _kernels(held, unit.name)
        assert len(kernels) >= unit.least, f"{system}: {unit.what}"
        wrong = [kernel for kernel, target, _ in kernels if target not in RUNS_ON_12_1]
        assert wrong == [], f"{system}: {unit.what}"
        empty = [kernel for kernel, _, sass in kernels if not re.search(rf"\b{unit.instruction}\b", sass)]
        assert empty == [], f"{system}: {unit.what}"


def test_a_kernel_of_another_target_is_empty_here(cubins: dict[str, list[Cubin]]) -> None:
    """The control: kernels for 10.0 in the same units were compiled away, and the test can see it."""
    for held in cubins.values():
        kernels = _kernels(held, r"GroupProblemShape.*MainloopSm100ArrayTma")
        assert kernels
        assert not any(re.search(r"\b(OMMA|QMMA)\b", sass) for _, _, sass in kernels)


def test_grouped_fp8_is_still_lacking(cubins: dict[str, list[Cubin]]) -> None:
    """When this fails, vLLM has it: FP8 experts on 12.x can leave Triton."""
    assert {system: _kernels(held, LACKING) for system, held in cubins.items()} == {key: [] for key in cubins}


@pytest.mark.parametrize("library", ["_C_stable_libtorch.abi3.so", "_moe_C_stable_libtorch.abi3.so"])
def test_the_libraries_of_the_default_routes_have_code_for_12_1(library: str) -> None:
    """Activations, norms, caches, sampling, routing: what is not CUTLASS, by library."""
    assert _systems()
    for system in _systems():
        held = targets(folder("GB10_VLLM_WHEELS") / system / library)
        assert {name.replace("sm", "sm_") for name in held} & RUNS_ON_12_1, system


def test_flash_attention_2_is_ptx_for_12_x() -> None:
    """Code for 8.0, and PTX, which a GB10's driver compiles at the first start and keeps.

    Its source is in no package. When this fails, the routing table's words for it on 12.x can go.
    """
    assert _systems()
    for system in _systems():
        library = folder("GB10_VLLM_WHEELS") / system / "vllm_flash_attn" / "_vllm_fa2_C.abi3.so"
        assert targets(library) == {"sm80", "compute80"}, system
