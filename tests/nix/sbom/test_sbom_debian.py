"""Which file of the Debian base came from which package of Debian: the tables, and what makes them."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest
from gb10_bom import debian
from gb10_bom.errors import BomError
from packaging.licenses import canonicalize_license_expression

ROOT = Path(__file__).parents[3]
FILES: dict[str, dict[str, list[str]]] = json.loads((ROOT / "nix/image/debian-files.json").read_text())
LICENCES: dict[str, str] = tomllib.loads((ROOT / "nix/image/debian-licences.toml").read_text())["packages"]
LOCK = (ROOT / "nix/debian/packages.lock").read_text()
NAMES = {name for table in FILES.values() for name in table} - {debian.OURS}


def test_each_package_has_a_licence_and_each_licence_a_package() -> None:
    assert sorted(NAMES - LICENCES.keys()) == []
    assert sorted(LICENCES.keys() - NAMES) == []
    assert list(LICENCES) == sorted(LICENCES)
    assert {name: canonicalize_license_expression(line) for name, line in LICENCES.items()} == LICENCES


@pytest.mark.parametrize("system", sorted(debian.TRIPLES))
def test_each_package_is_in_the_lock_of_each_system(system: str) -> None:
    locked = debian.locked(LOCK, system)
    assert sorted(debian.on(name, system) for name in NAMES if debian.on(name, system) not in locked) == []
    assert debian.on("lib/@loader@", system) == {
        "x86_64-linux": "lib/ld-linux-x86-64.so.2",
        "aarch64-linux": "lib/ld-linux-aarch64.so.1",
    }.get(system)


def test_no_place_is_two_packages() -> None:
    for table in FILES.values():
        places = [place for paths in table.values() for place in paths]
        assert len(places) == len(set(places))


def test_names_of_a_system_are_taken_out() -> None:
    for text in ("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "binutils-x86-64-linux-gnu"):
        word = debian.everywhere(text, "x86_64-linux")
        assert "x86" not in word
        assert debian.on(word, "x86_64-linux") == text


def test_byte_code_is_its_sources() -> None:
    assert debian.source_of("lib/__pycache__/abc.cpython-311.pyc") == "lib/abc.py"
    assert debian.source_of("__pycache__/abc.cpython-311.opt-1.pyc") == "abc.py"
    assert debian.source_of("lib/abc.pyc") == "lib/abc.py".replace(".py", ".pyc")


def test_files_find_their_packages() -> None:
    owners = {
        "usr/bin/python3.11": "python3.11-minimal",
        "usr/lib/python3.11/abc.py": "libpython3.11-minimal",
        "usr/lib/python3.11/json/__init__.py": "libpython3.11-stdlib",
        "usr/include/x86_64-linux-gnu/python3.11/pyconfig.h": "libpython3.11-dev",
    }
    files = [
        "bin/python3.11",
        "bin/python3",
        "lib/python3.11/abc.py",
        "lib/python3.11/__pycache__/abc.cpython-311.pyc",
        "lib/python3.11/json/__init__.py",
        "lib/python3.11/json/__pycache__/__init__.cpython-311.pyc",
        "include/python3.11/pyconfig.h",
    ]
    found = debian.origins("python3-3.11", files, owners, "x86_64-linux")
    assert debian.condensed(found, "x86_64-linux") == {
        "": ["bin/python3"],
        "libpython3.11-dev": ["include/"],
        "libpython3.11-minimal": ["lib/python3.11/abc.py"],
        "libpython3.11-stdlib": ["lib/python3.11/json/"],
        "python3.11-minimal": ["bin/python3.11"],
    }


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "x.deb"
    broken.write_text("no package")
    with pytest.raises(BomError, match=r"x\.deb cannot be read as a package of Debian"):
        debian.listed([broken])
    with pytest.raises(BomError, match="no package that the base cuts"):
        debian.table([], [tmp_path / "hash-other"], "x86_64-linux")


def test_the_table_is_what_the_packages_say() -> None:
    """GB10_DEBIAN_PACKAGES: packages of Debian, and the store paths cut from them (docs/security.md)."""
    named = os.environ.get("GB10_DEBIAN_PACKAGES")
    if not named:
        pytest.skip("GB10_DEBIAN_PACKAGES is not set: Nix's sandbox has no packages of Debian")
    paths = [Path(path) for path in named.split()]
    packages = [path for path in paths if path.suffix == ".deb"]
    assert debian.table(packages, [path for path in paths if path.suffix != ".deb"], "x86_64-linux") == FILES
