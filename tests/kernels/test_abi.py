"""The built libraries: what each needs of the machine, what it shows, and for which GPUs it has code."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path

import pytest
from libraries import ROUTES, built

NAMES = ("kernels", "sparse24")
GLIBC = (2, 36)  # Debian 12; DGX OS (Ubuntu 24.04) has 2.39
STABLE_ABI = re.compile(r"aoti_torch_\w+|torch_\w+")


def run(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


@pytest.fixture(params=list(itertools.product(NAMES, ROUTES)), ids="-".join)
def library(request: pytest.FixtureRequest) -> Path:
    return built(*request.param)


def undefined(library: Path) -> list[str]:
    lines = run("nm", "-D", "--undefined-only", library).splitlines()
    return [line.split()[-1] for line in lines]


def test_needs_no_library_but_torch_and_the_systems(library: Path) -> None:
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-d", library)))
    assert {"libtorch.so", "libcudart.so.13"} <= needed
    system = r"libstdc\+\+\.so\.6|libgcc_s\.so\.1|lib[cm]\.so\.6|ld-linux-.*"
    allowed = re.compile(rf"libtorch(_cpu)?\.so|libcudart\.so\.13|{system}")
    assert [name for name in needed if not allowed.fullmatch(name)] == []


def test_has_no_run_path(library: Path) -> None:
    assert not re.search(r"RPATH|RUNPATH", run("readelf", "-d", library))


def test_needs_no_newer_glibc_than_debian_12(library: Path) -> None:
    wanted = {
        tuple(int(part) for part in version.split("."))
        for version in re.findall(r"GLIBC_(\d+(?:\.\d+)+)", run("readelf", "-V", library))
    }
    assert wanted and max(wanted) <= GLIBC


def test_takes_only_the_stable_abi_of_torch(library: Path) -> None:
    names = [name.split("@")[0] for name in undefined(library)]
    torch = [name for name in names if "torch" in name or "c10" in name]
    assert torch
    assert [name for name in torch if not STABLE_ABI.fullmatch(name)] == []
    assert [name for name in names if name.startswith(("Py", "_Py"))] == []


def test_shows_no_symbol_of_its_own(library: Path) -> None:
    lines = run("nm", "-DC", "--defined-only", library).splitlines()
    own = [line for line in lines if "gb10" in line]
    assert own == []


def architectures(toolkit: Path, library: Path) -> tuple[set[str], set[str]]:
    """The targets of the machine code, and those of the PTX.

    An image's list entry drops the suffix; its assembler's note has it.
    """
    tool = toolkit / "bin/cuobjdump"
    images = run(tool, "--dump-elf", library)
    listed = subprocess.run([tool, "-lptx", library], capture_output=True, text=True, check=False)
    return set(re.findall(r"-arch (sm_\w+)", images)), set(re.findall(r"\.(sm_\w+)\.ptx", listed.stdout))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("route", "targets"), [("hardware", {"sm_90a", "sm_120f"}), ("software", {"sm_121"})], ids=list(ROUTES)
)
def test_the_code_is_for_the_gpus_of_its_route(
    name: str, route: str, targets: set[str], toolkit: Path
) -> None:
    """The hardware build is for Hopper and the 12.x family, the software build for generic 12.1."""
    assert architectures(toolkit, built(name, route)) == (targets, set())
