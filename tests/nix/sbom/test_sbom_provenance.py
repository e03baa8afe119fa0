"""The provenance: in-toto's and SLSA's types take it, and it says what the build was made of."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gb10_bom import provenance
from gb10_bom.errors import BomError
from gb10_bom.inputs import Inputs

REVISION = "0123456789abcdef0123456789abcdef01234567"


def _made(inputs: Inputs, folder: Path, revision: str = REVISION) -> dict[str, Any]:
    lock = folder / "a.lock"
    lock.write_text("pinned")
    return provenance.make(
        inputs,
        output="packages.x86_64-linux.image-cpu",
        revision=revision,
        nar_hash="sha256-" + base64.b64encode(bytes(range(32))).decode(),
        base="debian",
        locks={"nix/a.lock": lock},
    )


def test_it_is_a_statement_about_the_image(small: Inputs, tmp_path: Path) -> None:
    document = _made(small, tmp_path)
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["predicateType"] == "https://slsa.dev/provenance/v1"
    assert [subject["digest"]["sha256"] for subject in document["subject"]] == [
        small.content.config,
        small.content.archive,
    ]
    definition = document["predicate"]["buildDefinition"]
    assert definition["externalParameters"] == {
        "output": "packages.x86_64-linux.image-cpu",
        "revision": REVISION,
        "base": "debian",
    }
    by_name = {one["name"]: one for one in definition["resolvedDependencies"]}
    assert by_name["the flake"]["digest"] == {"gitCommit": REVISION, "nar-sha256": bytes(range(32)).hex()}
    assert by_name["nix/a.lock"]["digest"] == {"sha256": hashlib.sha256(b"pinned").hexdigest()}
    wheel = small.wheels["one"]
    assert by_name[wheel.file]["digest"] == {"sha256": wheel.sha256}
    assert by_name["libc6"]["uri"] == "pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12"
    assert by_name["0001-one.patch"]["digest"]["sha256"]
    made = {one["name"]: one for one in document["predicate"]["runDetails"]["byproducts"]}
    assert made.keys() == {item.path for item in small.items}
    assert made[small.items[0].path]["annotations"]["nix:nar_hash"] == "sha256:w"
    provenance.check(document)


@pytest.mark.parametrize("revision", ["unknown", f"{REVISION}-dirty"])
def test_files_that_no_commit_has_are_of_no_commit(small: Inputs, tmp_path: Path, revision: str) -> None:
    definition = _made(small, tmp_path, revision)["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["revision"] == revision
    assert "gitCommit" not in str(definition["resolvedDependencies"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda document: document.update(subject=[]), "subject"),
        (lambda document: document["subject"][0].pop("digest"), "digest"),
        (lambda document: document.update(surprise=1), "surprise"),
        (
            lambda document: document.update(predicateType="https://slsa.dev/provenance/v0.2"),
            "predicate is no",
        ),
        (lambda document: document["predicate"].update(surprise=1), "surprise"),
        (lambda document: document["predicate"]["buildDefinition"].pop("buildType"), "lacks a build type"),
        (lambda document: document["predicate"]["runDetails"].pop("builder"), "or a builder"),
        (lambda document: document["predicate"]["runDetails"].update(builder="me"), "in-toto"),
    ],
)
def test_what_the_types_do_not_know_is_refused(
    small: Inputs, tmp_path: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    document = _made(small, tmp_path)
    change(document)
    with pytest.raises(BomError, match=said):
        provenance.check(document)


def test_the_cpu_images_provenance_has_all_that_the_locks_name(real: Inputs, tmp_path: Path) -> None:
    definition = _made(real, tmp_path)["predicate"]["buildDefinition"]
    digests = {one["digest"].get("sha256") for one in definition["resolvedDependencies"]}
    assert {wheel.sha256 for wheel in real.wheels.values()} <= digests
    assert {package.sha256 for package in real.packages.values()} <= digests
