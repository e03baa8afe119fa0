"""nix/image/advisories.toml as an OpenVEX document, and what is refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gb10_bom import bom, vex
from gb10_bom.errors import BomError
from gb10_bom.inputs import Inputs

ROOT = Path(__file__).parents[3]
TABLE = vex.parse((ROOT / "nix/image/advisories.toml").read_text())
ROW = vex.Statement(
    vulnerability="CVE-0000-1",
    aliases=["GHSA-0"],
    package="one",
    wheels=["one"],
    affected="<1.0",
    status="fixed",
    notes="It is mended.",
    test="tests/nix/sbom/test_sbom_vex.py",
)


@pytest.fixture
def small_bom(small: Inputs) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(bom.to_json(bom.make(small)))
    return document


def _table(*rows: vex.Statement) -> vex.Table:
    return vex.Table("somebody", "2026-11-27T00:00:00Z", 1, list(rows))


def test_each_line_names_an_advisory_and_a_test_that_is_there() -> None:
    names = [row.vulnerability for row in TABLE.statements]
    assert names and len(set(names)) == len(names)
    for row in TABLE.statements:
        assert re.fullmatch(r"CVE-\d{4}-\d+|GHSA(-[0-9a-z]{4}){3}", row.vulnerability)
        text = (ROOT / row.test).read_text()
        assert row.vulnerability in text, f"{row.test} has no test of {row.vulnerability}"


def test_a_document_is_as_openvex_wants_it(small_bom: dict[str, Any]) -> None:
    document = vex.make(_table(ROW), small_bom)
    assert vex.problems(document, small_bom) == []
    assert document["@context"] == "https://openvex.dev/ns/v0.2.0"
    [statement] = document["statements"]
    [product] = statement["products"]
    assert product["@id"] == small_bom["metadata"]["component"]["purl"]
    assert [part["@id"] for part in product["subcomponents"]] == [
        "pkg:pypi/one@1.0?file_name=one-1.0-py3-none-any.whl"
    ]
    assert vex.make(_table(ROW), small_bom) == document
    other = vex.make(_table(replace(ROW, notes="Otherwise.")), small_bom)
    assert other["@id"] != document["@id"]


def test_a_line_about_what_the_image_has_not_is_left_out(small_bom: dict[str, Any]) -> None:
    document = vex.make(_table(ROW, replace(ROW, vulnerability="CVE-0000-2", wheels=["two"])), small_bom)
    assert [statement["vulnerability"]["name"] for statement in document["statements"]] == ["CVE-0000-1"]


def test_a_status_that_the_range_contradicts_is_refused(small_bom: dict[str, Any]) -> None:
    with pytest.raises(
        BomError, match=r"CVE-0000-1: one 1.0 is called fixed, and the advisory's range is <=1.0"
    ):
        vex.make(_table(replace(ROW, affected="<=1.0")), small_bom)
    with pytest.raises(BomError, match="is called affected"):
        vex.make(_table(replace(ROW, status="affected", action="Wait.")), small_bom)
    document = vex.make(_table(replace(ROW, affected="<=1.0", status="affected", action="Wait.")), small_bom)
    assert vex.problems(document, small_bom) == []
    with pytest.raises(BomError, match="no range of versions"):
        vex.make(_table(replace(ROW, affected="below 1")), small_bom)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda document: document.pop("author"), "the document lacks author"),
        (lambda document: document.update(extra=1), "the document has extra, which OpenVEX does not know"),
        (lambda document: document.update({"@context": "https://openvex.dev/ns"}), "@context is not"),
        (lambda document: document.update(timestamp="yesterday"), "timestamp is no time"),
        (lambda document: document.update(timestamp="2026-11-27T00:00:00"), "no time zone"),
        (lambda document: document.update(version=0), "version is no number"),
        (lambda document: document.update(statements=[]), "no statements"),
        (lambda document: document["statements"][0].update(status="mended"), "mended is no status"),
        (lambda document: document["statements"][0].pop("products"), "lacks products"),
        (lambda document: document["statements"][0].update(status="not_affected"), "go together"),
        (
            lambda document: document["statements"][0].update(justification="component_not_present"),
            "go together",
        ),
        (
            lambda document: document["statements"][0].update(status="not_affected", justification="because"),
            "because is no justification",
        ),
        (lambda document: document["statements"][0].update(status="affected"), "needs an action_statement"),
        (
            lambda document: document["statements"][0]["products"][0].update({"@id": "pkg:oci/x"}),
            "is not the image",
        ),
        (
            lambda document: document["statements"][0]["products"][0].update(
                subcomponents=[{"@id": "pkg:pypi/two@1"}]
            ),
            "pkg:pypi/two@1 is no component of the image",
        ),
    ],
)
def test_what_the_specification_refuses_is_named(
    small_bom: dict[str, Any], change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    document = vex.make(_table(ROW), small_bom)
    change(document)
    found = vex.problems(document, small_bom)
    assert any(said in line for line in found), found


@pytest.mark.parametrize("text", ["", "author = 1", "[[statement]]\nwrong = 1", "not toml"])
def test_a_table_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BomError, match=r"advisories\.toml: "):
        vex.parse(text)


def test_the_cpu_images_document(real: Inputs, real_text: str) -> None:
    built = json.loads((Path(os.environ["GB10_SBOM"]) / f"{real.name}.openvex.json").read_text())
    document = json.loads(real_text)
    assert built == vex.make(TABLE, document)
    assert vex.problems(built, document) == []
    assert len(built["statements"]) == len(TABLE.statements)
