"""FlashInfer's modules that were compiled ahead of time: machine code for the family of 12.x alone.

``GB10_FLASHINFER`` names the site-packages of a package of modules: in the checks the smallest group, by
`nix build .#flashinfer-checks` all of them. What gb10 reads in a library is compared with `cuobjdump`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cubins import ENCODE, MATRIX, Cubin, cubins_of, has_ptx, needs_toolkit, tool
from libraries import built, folder

from gb10.machine import flashinfer

pytestmark = needs_toolkit

INSTRUCTIONS = {
    "fp4_quantization_120f": ENCODE,
    "fp4_gemm_cutlass_sm120": MATRIX,
    "fused_moe_120": MATRIX,
    "gemm_sm120": "QMMA",
}
"""The instruction that each of these modules is there for."""

LIBRARIES = ("cudart", "cublasLt", "cublas", "nvrtc")
"""What torch has loaded before FlashInfer, in the order of their needs."""


def modules() -> dict[str, Path]:
    """Library of each module, by the manifest, which FlashInfer believes."""
    place = folder("GB10_FLASHINFER") / flashinfer.PACKAGE
    names = json.loads((place / "manifest.json").read_text())["modules"]
    return {name: place / "modules" / name / f"{name}.so" for name in names}


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Cubin]]:
    """Disassembled, the modules that are there for an instruction."""
    scratch = tmp_path_factory.mktemp("modules")
    found = {name: path for name, path in modules().items() if name in INSTRUCTIONS}
    return {name: cubins_of(path, scratch / name) for name, path in found.items()}


def test_every_module_is_for_the_family_alone(tmp_path: Path) -> None:
    found = modules()
    assert found
    for name, path in found.items():
        assert flashinfer.targets(path) == {"sm120f"}, name
        assert not has_ptx(path), name
        scratch = tmp_path / "x"
        scratch.mkdir(exist_ok=True)
        tool("cuobjdump", "-xelf", "all", path.resolve(), cwd=scratch)
        elves = list(scratch.iterdir())
        assert elves, name
        for elf in elves:
            assert set(re.findall(rb"-arch (sm_\w+)", elf.read_bytes())) == {b"sm_120f"}, (
                f"{name}: {elf.name}"
            )
            elf.unlink()


def test_every_module_asks_for_the_driver_and_for_nothing_of_the_build() -> None:
    """The driver is called by name, and what torch has loaded answers to a library's plain name only."""
    for name, path in modules().items():
        command = ["readelf", "--dynamic", "--wide", str(path.resolve())]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        needed = re.findall(r"\(NEEDED\).*\[(.+)\]", listing)
        assert {"libcuda.so.1", "libcudart.so.13"} <= set(needed), name
        assert not re.search(r"\((RPATH|RUNPATH)\)", listing), name


LOAD = """
import ctypes, sys
import tvm_ffi
libraries, modules = sys.argv[1].split(), sys.argv[2:]
for library in libraries:
    ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
for module in modules:
    tvm_ffi.load_module(module)
print(len(modules))
"""


def test_every_module_can_be_loaded(tmp_path: Path) -> None:
    """Its libraries are found by the names that torch loads them under; the driver is a stand-in."""
    home = folder("GB10_FLASHINFER_CUDA_HOME") / "lib64"
    libraries = [home / "stubs" / "libcuda.so", *(home / f"lib{name}.so" for name in LIBRARIES)]
    given = [str(path) for path in modules().values()]
    command = [sys.executable, "-c", LOAD, " ".join(map(str, libraries)), *given]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(given)


def test_the_instructions_are_there(cubins: dict[str, list[Cubin]]) -> None:
    """Not the empty bodies of kernels that were guarded away for this target."""
    assert cubins
    for name, held in cubins.items():
        assert sum(cubin.count(re.escape(INSTRUCTIONS[name])) for cubin in held) > 0, name


def test_every_nvfp4_quantiser_uses_the_conversion(cubins: dict[str, list[Cubin]]) -> None:
    kernels = {
        name: sass
        for cubin in cubins["fp4_quantization_120f"]
        for name, sass in cubin.functions.items()
        if "BlockScaleQuantizationTypeE0E" in name  # FP16 or BF16 to FP4
    }
    assert len(kernels) >= 8
    assert [name for name, sass in kernels.items() if ENCODE not in sass] == []


@pytest.mark.parametrize(("route", "held"), [("hardware", {"sm90a", "sm120f"}), ("software", {"sm121"})])
def test_another_target_is_seen(route: str, held: set[str]) -> None:
    """The control: a library for other targets, and one for a generic one."""
    assert flashinfer.targets(built("kernels", route)) == held
