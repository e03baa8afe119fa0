"""What a library or a program of the closure needs is found in the store. The loader itself is asked."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
from conftest import NAME, closure

LOADER = os.environ["GB10_LOADER"]
PYTHON = os.environ["GB10_PYTHON"]

DRIVER = {"libcuda.so.1", "libnvidia-ml.so.1", "libnvcuvid.so.1", "libnvidia-encode.so.1"}
"""What NVIDIA's driver brings: no package has them."""

OPTIONAL = {
    # numba looks which of its thread pools loads; the one that needs nothing is there.
    "numba/np/ufunc/omppool": {"libgomp.so.1.0.0"},
    "numba/np/ufunc/tbbpool": {"libtbb.so.12"},
}
"""Modules that need what nobody has, and why that is no loss."""

OPTIONAL_ON_CUDA = {
    # GPUDirect Storage over a network file system: cuFile looks whether it loads.
    r"nvidia/cu13/lib/libcufile_rdma": r"librdmacm\.so",
    # NVSHMEM starts by what NVSHMEM_BOOTSTRAP names, and travels by a transport that loads.
    r"nvidia/nvshmem/lib/nvshmem_bootstrap_(mpi|pmix|shmem)": r"lib(mpi|pmix|oshmem)\.so",
    r"nvidia/nvshmem/lib/nvshmem_transport_(libfabric|ucx)": r"lib(fabric|ucs|ucp)\.so",
    # Video as input: torchcodec has one for each FFmpeg, takes the machine's, or says that there is none.
    r"torchcodec/libtorchcodec_(core|custom_ops)\d": r"lib(av[a-z]+|swresample|swscale)\.so",
    r"torchcodec/libtorchcodec_heic": r"libheif\.so",
}
"""What `serve-cuda` has besides: pattern of the file -> pattern of what it may lack."""


def is_elf(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == b"\x7fELF"


@cache
def files() -> list[Path]:
    """The machine code of the closure, each file once."""
    found = []
    for path in closure(NAME):
        # Of a wheel, what environments link: not what it has for compilers and tools in its own lib.
        sites = list(path.glob("lib/python3*/site-packages"))
        for part in [*sites, path / "bin"] if sites else [path]:
            for folder, _, names in os.walk(part):
                places = (Path(folder, name) for name in names)
                found += [
                    place for place in places if not place.is_symlink() and place.is_file() and is_elf(place)
                ]
    return sorted(found)


def name_of(file: Path) -> str:
    """Its name in site-packages without the suffix, or else in its store path."""
    return re.sub(
        r"^lib/python3[^/]*/site-packages/|(\.cpython-[^/]*|\.abi3)?\.so$", "", "/".join(file.parts[4:])
    )


@cache
def loaded_first() -> str:
    """What Python has loaded before it loads anything else."""
    listed = subprocess.run([LOADER, "--list", PYTHON], capture_output=True, text=True, check=True).stdout
    return " ".join(re.findall(r"=> (/\S+)", listed))


def resolve(file: Path) -> dict[str, str]:
    """Library -> where the loader finds it ("" is nowhere), for a file that Python or the system starts."""
    # 0: a program, 2: a library, 1: neither (an object file, machine code of a GPU).
    if (kind := subprocess.run([LOADER, "--verify", file]).returncode) == 1:
        return {}
    preload = ["--preload", loaded_first()] if kind == 2 else []
    # As ldd asks; with --list it would end at the first that is missing.
    asking = {"LD_TRACE_LOADED_OBJECTS": "1", "LD_WARN": "", "LD_BIND_NOW": "", "LD_VERBOSE": ""}
    ran = subprocess.run([LOADER, *preload, file], capture_output=True, text=True, env=asking)
    if "statically linked" in ran.stdout:
        return {}
    found = dict(re.findall(r"^\s*(\S+) => (/\S+|not found)", ran.stdout, re.MULTILINE))
    # A version that a library lacks is an error of its own.
    lacks = re.findall(r"(version `\S+' not found.*)", ran.stdout + ran.stderr)
    assert found or not ran.returncode, f"{file}: {ran.stdout}{ran.stderr}"
    return {
        **{name: place.replace("not found", "") for name, place in found.items()},
        **dict.fromkeys(lacks, ""),
    }


def amiss(found: Iterable[tuple[Path, dict[str, str]]], known: set[str]) -> dict[str, set[str]]:
    """File -> what it needs that is not in the store. ``known`` are files that their importer loads first."""
    result: dict[str, set[str]] = {}
    for file, libraries in found:
        for name, place in libraries.items():
            if place.startswith("/nix/store/") or (not place and (name in known or name in DRIVER)):
                continue
            result.setdefault(name_of(file), set()).add(f"{name} {place}".strip())
    return result


def without_optional(found: dict[str, set[str]]) -> tuple[dict[str, set[str]], set[str]]:
    """What OPTIONAL_ON_CUDA does not explain, and the patterns of it that explained something."""
    left, used = {}, set()
    for file, libraries in found.items():
        for pattern, lacks in OPTIONAL_ON_CUDA.items():
            if re.match(pattern, file):
                explained = {library for library in libraries if re.match(lacks, library)}
                used |= {pattern} if explained else set()
                libraries = libraries - explained
        if libraries:
            left[file] = libraries
    return left, used


def test_libraries_are_found_in_the_store() -> None:
    everything = files()
    assert len(everything) > 300
    known = {file.name for file in everything}
    found = amiss(((file, resolve(file)) for file in everything), known)
    used: set[str] = set()
    if NAME == "serve-cuda":
        found, used = without_optional(found)
    assert found == OPTIONAL
    assert used == (set(OPTIONAL_ON_CUDA) if NAME == "serve-cuda" else set()), "what lacks nothing any more"


def test_what_is_optional_is_that_alone() -> None:
    """A library that is missed beside FFmpeg's is told, and so is FFmpeg's missed by another."""
    left, used = without_optional(
        {
            "torchcodec/libtorchcodec_core4": {"libavcodec.so.58", "libgone.so.1"},
            "torch/lib/libtorch_cuda": {"libavcodec.so.58"},
        }
    )
    assert left == {
        "torchcodec/libtorchcodec_core4": {"libgone.so.1"},
        "torch/lib/libtorch_cuda": {"libavcodec.so.58"},
    }
    assert len(used) == 1


def test_programs_start_with_the_loader_of_the_store() -> None:
    verified = {file: subprocess.run([LOADER, "--verify", file]).returncode for file in files()}
    # The C library itself is a program too, which says its version and is started by nobody.
    programs = [str(file) for file, kind in verified.items() if kind == 0 and file.name != "libc.so.6"]
    listed = subprocess.run(["readelf", "-lW", *programs], capture_output=True, text=True, check=True).stdout
    loaders = set(re.findall(r"Requesting program interpreter: (.*)\]", listed))
    assert loaders == {LOADER}


def test_scripts_start_with_a_program_of_the_store() -> None:
    """Those that are on a PATH."""
    wrong = {}
    for path in closure(NAME):
        for script in (path / "bin").glob("*"):
            with script.open("rb") as file:
                first = file.readline(200)
            # An environment puts its own Python where an installer would: "#!python".
            if first.startswith(b"#!") and not first.startswith((b"#!/nix/store/", b"#!python")):
                wrong[f"{path.name}/{script.name}"] = first.decode().strip()
    assert wrong == {}


@pytest.mark.parametrize("name", ["libgone.so.1", "libpcre2-8.so.0"])
def test_a_library_of_the_machine_is_seen(tmp_path: Path, name: str) -> None:
    """That the test above can fail: a library that needs what nobody has, or only the machine."""
    wanted, probe = tmp_path / name, tmp_path / "libprobe.so"
    linking = [f"{os.environ['GB10_COMPILER']}/bin/cc", "-shared", "-Wl,--no-as-needed", "-o"]
    subprocess.run([*linking, wanted, f"-Wl,-soname,{name}", "-xc", "/dev/null"], check=True)
    subprocess.run([*linking, probe, "-xc", "/dev/null", "-xnone", wanted], check=True)
    wanted.unlink()
    assert amiss([(probe, resolve(probe))], set()) == {name_of(probe): {name}}
