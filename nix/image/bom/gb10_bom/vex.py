"""OpenVEX 0.2.0: what nix/image/advisories.toml says of advisories, for the image of a bill of materials."""

from __future__ import annotations

import json
import tomllib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from packageurl import PackageURL
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from gb10_bom.errors import BomError

CONTEXT = "https://openvex.dev/ns/v0.2.0"
STATUSES = ("not_affected", "affected", "fixed", "under_investigation")
JUSTIFICATIONS = (
    "component_not_present",
    "vulnerable_code_not_present",
    "vulnerable_code_not_in_execute_path",
    "vulnerable_code_cannot_be_controlled_by_adversary",
    "inline_mitigations_already_exist",
)
_DOCUMENT = {"@context", "@id", "author", "timestamp", "version", "statements"}
_STATEMENT = {"vulnerability", "products", "status", "status_notes", "justification", "action_statement"}


@dataclass(frozen=True)
class Statement:
    """A row of the table.

    Attributes:
        package: the project that the advisory is about
        wheels: the wheels of the locks that have its code
        affected: the advisory's range of versions, as pip writes it
        test: the file that shows what is said
        justification: of ``not_affected``
        action: what to do, of ``affected``
    """

    vulnerability: str
    package: str
    wheels: list[str]
    affected: str
    status: str
    notes: str
    test: str
    aliases: list[str] = field(default_factory=list)
    justification: str = ""
    action: str = ""


@dataclass(frozen=True)
class Table:
    """nix/image/advisories.toml."""

    author: str
    timestamp: str
    version: int
    statements: list[Statement]


def parse(text: str) -> Table:
    """The table of a text.

    Raises:
        BomError: it is none.
    """
    try:
        data = tomllib.loads(text)
        rows = [Statement(**row) for row in data.pop("statement")]
        return Table(**data, statements=rows)
    except (KeyError, TypeError, ValueError) as error:
        raise BomError(f"nix/image/advisories.toml: {error}") from None


def _products(row: Statement, bom: dict[str, Any]) -> list[dict[str, Any]]:
    """The image, with those components of it that a row is about."""
    found = []
    for part in bom["components"]:
        if part["name"] not in row.wheels or not part.get("purl", "").startswith("pkg:pypi/"):
            continue
        try:
            inside = SpecifierSet(row.affected).contains(part["version"], prereleases=True)
        except InvalidSpecifier:
            raise BomError(
                f"advisories.toml: {row.vulnerability}: {row.affected} is no range of versions"
            ) from None
        if inside is (row.status == "fixed"):
            raise BomError(
                f"advisories.toml: {row.vulnerability}: {part['name']} {part['version']} is called "
                f"{row.status}, and the advisory's range is {row.affected}"
            )
        found.append({"@id": part["purl"], "identifiers": {"purl": part["purl"]}})
    return found


def make(table: Table, bom: dict[str, Any]) -> dict[str, Any]:
    """The document for an image's bill of materials. Rows about what the image has not are left out.

    Raises:
        BomError: a row says what its own range contradicts.
    """
    image = bom["metadata"]["component"]["purl"]
    statements = []
    for row in table.statements:
        parts = _products(row, bom)
        if not parts:
            continue
        statement = {
            "vulnerability": {"name": row.vulnerability, "aliases": row.aliases},
            "products": [{"@id": image, "identifiers": {"purl": image}, "subcomponents": parts}],
            "status": row.status,
            "status_notes": f"{row.notes} Affected: {row.package} {row.affected}. Shown by {row.test}.",
        }
        if row.justification:
            statement["justification"] = row.justification
        if row.action:
            statement["action_statement"] = row.action
        statements.append(statement)
    name = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([bom["serialNumber"], statements], sort_keys=True))
    return {
        "@context": CONTEXT,
        "@id": f"urn:uuid:{name}",
        "author": table.author,
        "timestamp": table.timestamp,
        "version": table.version,
        "statements": statements,
    }


def _keys(what: str, data: dict[str, Any], known: set[str], needed: set[str]) -> Iterator[str]:
    yield from (f"{what} has {key}, which OpenVEX does not know" for key in sorted(data.keys() - known))
    yield from (f"{what} lacks {key}" for key in sorted(needed - data.keys()))


def problems(document: dict[str, Any], bom: dict[str, Any]) -> list[str]:
    """What the specification refuses in a document, and what is not of the bill of materials, in lines."""
    found = list(_keys("the document", document, _DOCUMENT, _DOCUMENT))
    if document.get("@context") != CONTEXT:
        found.append(f"@context is not {CONTEXT}")
    try:
        if datetime.fromisoformat(document.get("timestamp", "")).tzinfo is None:
            found.append("timestamp has no time zone")
    except (TypeError, ValueError):
        found.append("timestamp is no time")
    if not isinstance(document.get("version"), int) or document["version"] < 1:
        found.append("version is no number from 1 on")
    statements = document.get("statements", [])
    if not statements:
        found.append("there are no statements")
    for statement in statements:
        found += _statement_problems(statement, bom)
    return found


def _statement_problems(statement: dict[str, Any], bom: dict[str, Any]) -> Iterator[str]:
    name = statement.get("vulnerability", {}).get("name", "a statement without a name")
    yield from _keys(name, statement, _STATEMENT, {"vulnerability", "products", "status"})
    status = statement.get("status")
    if status not in STATUSES:
        yield f"{name}: {status} is no status"
    justification = statement.get("justification")
    if justification is not None and justification not in JUSTIFICATIONS:
        yield f"{name}: {justification} is no justification"
    if (status == "not_affected") != (justification is not None):
        yield f"{name}: not_affected and a justification go together"
    if status == "affected" and not statement.get("action_statement"):
        yield f"{name}: affected needs an action_statement"
    image = bom["metadata"]["component"]["purl"]
    known = {part.get("purl") for part in bom["components"]}
    for product in statement.get("products", []):
        if product.get("@id") != image:
            yield f"{name}: {product.get('@id')} is not the image"
        for part in product.get("subcomponents", []):
            if part.get("@id") not in known:
                yield f"{name}: {part.get('@id')} is no component of the image"
            elif PackageURL.from_string(part["@id"]).to_string() != part["@id"]:
                yield f"{name}: {part['@id']} is no package URL"


def to_json(document: dict[str, Any]) -> str:
    """The document's text."""
    return json.dumps(document, indent=1, sort_keys=True) + "\n"
