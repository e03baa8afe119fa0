"""python/licences.toml: a line for each wheel of the locks, as the wheel's metadata says, and no other."""

import json
import os
import platform
import re
import sys
import tomllib
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from packaging.licenses import canonicalize_license_expression
from packaging.utils import canonicalize_name

PYTHON = Path(__file__).parents[3] / "python"
TABLE = tomllib.loads((PYTHON / "licences.toml").read_text(encoding="utf-8"))
WHEELS: dict[str, str] = TABLE["wheels"]
SAID: dict[str, str | list[str]] = TABLE["said"]
# Their wheels are read as text and never installed.
READ_ONLY = {"corpus", "heldout"}


def _profiles(place: str = "*") -> dict[str, set[str]]:
    """The names of each profile's wheels, on all systems or on one of them."""
    found: dict[str, set[str]] = {}
    for path in sorted((PYTHON / "locks").glob(f"pylock.*-{place}.toml")):
        profile = re.sub(r"-(x86_64|aarch64)-linux-cp\d+$", "", path.name.split(".")[1])
        names = {package["name"] for package in tomllib.loads(path.read_text(encoding="utf-8"))["packages"]}
        found[profile] = found.get(profile, set()) | names
    return {profile: names for profile, names in found.items() if profile not in READ_ONLY}


def _said(metadata: Message) -> str:
    """What a wheel's metadata says of its licence: an expression, a line or classifiers; empty if nothing."""
    if expression := metadata["License-Expression"]:
        return str(expression)
    text = str(metadata["License"] or "").strip()
    if text and "\n" not in text:
        return text
    classes = [str(line).split(" :: ") for line in metadata.get_all("Classifier", [])]
    licences = [" :: ".join(words[1:]) for words in classes if words[0] == "License"]
    return " / ".join(line.removeprefix("OSI Approved :: ") for line in licences)


def _reported(path: Path) -> list[Message]:
    """The metadata in a report of `pip install --dry-run --report`, which downloads no wheel."""
    found = []
    for item in json.loads(path.read_text(encoding="utf-8"))["install"]:
        metadata = Message()
        for key in ("name", "license", "license_expression", "classifier"):
            values = item["metadata"].get(key, [])
            for value in values if isinstance(values, list) else [values]:
                metadata[key.replace("_", "-")] = value
        found.append(metadata)
    return found


def _folders(variable: str) -> list[Path]:
    return [Path(folder) for folder in os.environ[variable].split()]


def _metadata() -> list[Message]:
    """Of the wheels that are unpacked here; GB10_PIP_REPORT adds those that are not."""
    folders = [*_folders("GB10_CPU_WHEELS"), *_folders("GB10_MORE_WHEELS")]
    paths = [path for folder in folders for path in sorted(folder.glob("*.dist-info/METADATA"))]
    found = [HeaderParser().parsestr(path.read_text(encoding="utf-8", errors="replace")) for path in paths]
    report = os.environ.get("GB10_PIP_REPORT")
    return found + (_reported(Path(report)) if report else [])


def _name(metadata: Message) -> str:
    return canonicalize_name(str(metadata["Name"]))


def test_each_wheel_has_a_line_and_each_line_a_wheel() -> None:
    locked = set().union(*_profiles().values())
    assert sorted(locked - WHEELS.keys()) == [], "add a line to python/licences.toml"
    assert sorted(WHEELS.keys() - locked) == [], "no lock has them: take them out of python/licences.toml"
    assert sorted(SAID.keys() - WHEELS.keys()) == []
    assert list(WHEELS) == sorted(WHEELS)


def test_the_lines_are_expressions_of_spdx() -> None:
    assert {name: canonicalize_license_expression(line) for name, line in WHEELS.items()} == WHEELS


def test_what_is_added_is_of_a_wheel_of_that_profile() -> None:
    profiles = _profiles()
    for more in TABLE["also"]:
        assert more.keys() == {"name", "profiles", "systems", "licence", "reason"}
        assert all(more["name"] in profiles[profile] for profile in more["profiles"])


def test_the_metadata_says_what_the_lines_say() -> None:
    metadata = _metadata()
    profiles = _profiles(f"{platform.machine()}-linux-cp{sys.version_info.major}{sys.version_info.minor}")
    # What is unpacked for other checks anyway.
    unpacked = ("cpu", "report", "lock", "cuda-toolkit", "sbom", "docs")
    expected = set().union(*(profiles[name] for name in unpacked))
    assert sorted(expected - {_name(one) for one in metadata}) == []
    wrong = {}
    for one in metadata:
        line = SAID.get(_name(one), WHEELS.get(_name(one), "no line"))
        if _said(one) not in ([line] if isinstance(line, str) else line):
            wrong[_name(one)] = f"metadata {_said(one)!r}, python/licences.toml {line!r}"
    assert wrong == {}


def test_nothing_of_nvidias_or_intels_in_the_cpu_half() -> None:
    pattern = re.compile(r"lib(cu(da|dnn|blas|fft|rand|solver|sparse|pti)|nv|nccl|iomp|mkl|svml|ur_)")
    assert all(map(pattern.match, ["libcudart.faf08d9a.so.13", "libnvjpeg.so", "libiomp5.so"]))
    libraries = [path for folder in _folders("GB10_CPU_WHEELS") for path in folder.rglob("*.so*")]
    assert len(libraries) > 100, "these are not the wheels' libraries"
    assert [str(path) for path in libraries if pattern.match(path.name)] == []
