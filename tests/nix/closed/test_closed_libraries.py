"""Whatever a library or a program of the closure needs, the loader finds in the store. The loader itself is asked.

GB10_LIBRARIES names the closure (NAME.graph).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
from conftest import closure

NAME = os.environ.get("GB10_LIBRARIES", "serve")
LOADER = os.environ["GB10_LOADER"]
PYTHON = os.environ["GB10_PYTHON"]

DRIVER = {"libcuda.so.1", "libnvidia-ml.so.1", "libnvcuvid.so.1", "libnvidia-encode.so.1"}
"""What NVIDIA's driver brings: no package has them."""

OPTIONAL: dict[str, set[str]] = {}
"""Files that need what nobody has, and why that is no loss."""


def is_elf(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == b"\x7fELF"


@cache
def files() -> list[Path]:
    """The machine code of the closure, each file once."""
    found = []
    for path in closure(NAME):
        for folder, _, names in os.walk(path):
            places = (Path(folder, name) for name in names)
            found += [place for place in places if not place.is_symlink() and place.is_file() and is_elf(place)]
    return sorted(found)


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
    return {**{name: place.replace("not found", "") for name, place in found.items()}, **dict.fromkeys(lacks, "")}


def amiss(found: Iterable[tuple[Path, dict[str, str]]], known: set[str]) -> dict[str, set[str]]:
    """File -> what it needs that is not in the store. ``known`` are the closure's own files, which their importer loads first."""
    result: dict[str, set[str]] = {}
    for file, libraries in found:
        for name, place in libraries.items():
            if place.startswith("/nix/store/") or (not place and (name in known or name in DRIVER)):
                continue
            result.setdefault("/".join(file.parts[4:]), set()).add(f"{name} {place}".strip())
    return result


def test_libraries_are_found_in_the_store() -> None:
    everything = files()
    assert len(everything) > 300
    known = {file.name for file in everything}
    found = amiss(((file, resolve(file)) for file in everything), known)
    print(found)
    assert found == OPTIONAL


def test_programs_start_with_the_loader_of_the_store() -> None:
    programs = [str(file) for file in files() if subprocess.run([LOADER, "--verify", file]).returncode == 0]
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
            if first.startswith(b"#!") and not first.startswith(b"#!/nix/store/"):
                wrong[f"{path.name}/{script.name}"] = first.decode().strip()
    assert wrong == {}


@pytest.mark.parametrize("name", ["libgone.so.1", "libpcre2-8.so.0"])
def test_a_library_of_the_machine_is_seen(tmp_path: Path, name: str) -> None:
    """That the test above can fail: a program that needs a library which nobody has, or only the machine (or the build root)."""
    probe = tmp_path / "libprobe.so"
    shutil.copy(next(file for file in files() if file.name.startswith("libz.so")), probe)
    probe.chmod(0o755)
    subprocess.run(["patchelf", "--add-needed", name, probe], check=True)
    assert amiss([(probe, resolve(probe))], set()) == {"/".join(probe.parts[4:]): {name}}
