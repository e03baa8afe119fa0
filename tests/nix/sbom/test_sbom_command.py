"""The command: what is wrong is one line, and nothing is written."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest
from gb10_bom.__main__ import main
from gb10_bom.archive import Content
from gb10_bom.errors import BomError
from gb10_bom.inputs import Item, licences_of, registered, unlisted, wheels_of
from gb10_bom.patches import parse
from packaging.licenses import canonicalize_license_expression

ROOT = Path(__file__).parents[3]
ADVISORIES = str(ROOT / "nix/image/advisories.toml")


def _fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1 and shown.err.startswith("sbom: error: ")
    return shown.err


def test_a_plan_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.json"
    out = tmp_path / "out"
    out.mkdir()
    assert "No such file" in _fails(capsys, "sbom", str(plan), ADVISORIES, "--out", str(out))
    plan.write_text("{")
    assert "is no plan" in _fails(capsys, "sbom", str(plan), ADVISORIES, "--out", str(out))
    plan.write_text("{}")
    assert "the plan cannot be read (KeyError: 'items')" in _fails(
        capsys, "sbom", str(plan), ADVISORIES, "--out", str(out)
    )
    assert list(out.iterdir()) == []


def test_a_document_that_is_wrong_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The CPU's plan without one of its items."""
    plan = os.environ.get("GB10_SBOM_PLAN")
    if not plan:
        pytest.skip("GB10_SBOM_PLAN is not set: the flake's check has it")
    data = json.loads(Path(plan).read_text())
    if data["base"] != "debian":
        pytest.skip("on nixpkgs a store path that nothing lists is a component by its name")
    [gone] = [item for item in data["items"] if item["name"] == "entry.py"]
    data["items"].remove(gone)
    changed = tmp_path / "plan.json"
    changed.write_text(json.dumps(data))
    out = tmp_path / "out"
    out.mkdir()
    said = _fails(capsys, "sbom", str(changed), ADVISORIES, "--out", str(out))
    assert said == f"sbom: error: {gone['path']} is of no component (1 in all)\n"
    assert list(out.iterdir()) == []


def test_a_lock_is_read() -> None:
    text = (
        'packages = [{ name = "torch", version = "2+cpu", '
        'wheels = [{ path = "torch.whl", hashes = { sha256 = "ab" } }],'
        ' tool = { gb10 = { index = "pytorch-cpu" } } }]'
    )
    [wheel] = wheels_of(text).values()
    assert (wheel.name, wheel.version, wheel.file, wheel.sha256, wheel.index) == (
        "torch",
        "2+cpu",
        "torch.whl",
        "ab",
        "pytorch-cpu",
    )


def test_licences_are_those_of_the_profile_and_system() -> None:
    text = (
        '[wheels]\none = "MIT OR ISC"\n'
        '[[also]]\nname = "one"\nprofiles = ["cpu"]\nsystems = ["s"]\nlicence = "issl"\n'
    )
    assert licences_of(text, "cpu", "s") == {"one": "(MIT OR ISC) AND LicenseRef-nixpkgs-issl"}
    assert licences_of(text, "cuda", "s") == licences_of(text, "cpu", "other") == {"one": "MIT OR ISC"}


def test_a_registration_is_read() -> None:
    found = registered("/a\nsha256:x\n10\n\n2\n/a\n/b\n/b\nsha256:y\n1\n\n0\n")
    assert {path: (one.nar_hash, one.references) for path, one in found.items()} == {
        "/a": ("sha256:x", ["/a", "/b"]),
        "/b": ("sha256:y", []),
    }


def test_what_nixpkgs_brings_is_known_by_its_name() -> None:
    files = [
        "/nix/store/h-glibc-2.40-66/lib/libc.so.6",
        "/nix/store/h-known-1/x",
        "/nix/store/h-hook.sh",
        "/bin/sh",
    ]
    content = Content("", "", "", [], files)
    found = unlisted([Item("/nix/store/h-known-1", "package", "known")], content)
    assert [(item.kind, item.name, item.version) for item in found] == [
        ("nixpkgs", "glibc", "2.40-66"),
        ("nixpkgs", "hook.sh", ""),
    ]


def test_a_patch_without_a_header_is_refused() -> None:
    with pytest.raises(BomError, match=r"x\.patch says nothing of Upstream, Test in its header"):
        parse("x.patch", "A title\n\nSymptom: wrong.\n\n--- a/x\n+++ b/x\n")
    untitled = parse("0001-x.patch", "Symptom: wrong.\nUpstream: none.\nTest: tests/x.py\n\n--- a/x\n")
    assert (untitled.title, untitled.links) == ("0001-x", [])


def test_every_patch_of_the_repository_is_read() -> None:
    files = sorted((ROOT / "patches").glob("*/*.patch"))
    assert len(files) > 10
    for file in files:
        assert parse(file.name, file.read_text()).fields["Test"]


def test_the_parts_of_wheels_have_wheels_and_licences() -> None:
    rows = tomllib.loads((ROOT / "nix/image/vendored.toml").read_text())["part"]
    wheels = tomllib.loads((ROOT / "python/licences.toml").read_text())["wheels"]
    assert rows == sorted(rows, key=lambda row: row["wheel"])
    for row in rows:
        assert row.keys() - {"said"} == {"wheel", "files", "name", "licence"}
        assert row["wheel"] in wheels, "no lock has it"
        assert canonicalize_license_expression(row["licence"]) == row["licence"]
