"""Holds a finished bill of materials against the image, the locks and the official schema.

It reads the document as anybody would, and shares nothing with what wrote it but the names of two properties.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from gb10_bom.bom import SAID_BY
from gb10_bom.debian import source_of
from gb10_bom.inputs import Inputs

Part = dict[str, Any]


def schema_problems(text: str) -> list[str]:
    """What the schema of CycloneDX 1.6 says against a document: no lines where nothing."""
    errors = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text, all_errors=True)
    return [_words(error) for error in errors or []]


def _words(error: Any) -> str:
    place = "/".join(str(step) for step in error.data.absolute_path)
    return f"the schema refuses {place or 'the document'}: {error.data.message}"


def nested(parts: list[Part]) -> Iterator[Part]:
    """Components and those within them."""
    for part in parts:
        yield part
        yield from nested(part.get("components", []))


def properties(part: Part) -> dict[str, str]:
    """A component's properties."""
    return {entry["name"]: entry["value"] for entry in part.get("properties", [])}


def places(part: Part) -> list[str]:
    """Where in the image a component is found."""
    return [entry["location"] for entry in part.get("evidence", {}).get("occurrences", [])]


def label(part: Part) -> str:
    """A component in a message."""
    return f"{part['name']} {part.get('version', '')}".rstrip()


def ownership(parts: list[Part], files: list[str]) -> tuple[dict[str, int], list[str]]:
    """How many files each component (its bom-ref) has itself, and what is wrong: files of none or several."""
    owner: dict[str, str] = {}
    problems = [
        f"{place} is of two components: {owner[place]} and {part['bom-ref']}"
        for part in nested(parts)
        for place in places(part)
        if owner.setdefault(place, part["bom-ref"]) != part["bom-ref"]
    ]
    counts = dict.fromkeys((part["bom-ref"] for part in nested(parts)), 0)
    unowned = []
    for file in files:
        # Byte code is of the component that has its source.
        found = next(
            (owner[place] for name in (file, source_of(file)) for place in _above(name) if place in owner),
            None,
        )
        if found is None:
            unowned.append(file)
        else:
            counts[found] += 1
    problems += [f"{file} is of no component" for file in unowned]
    return counts, problems


def _above(file: str) -> Iterator[str]:
    """A path and the folders that it lies in, the longest first."""
    while file:
        yield file
        file = file.rpartition("/")[0]


def _total(part: Part, counts: dict[str, int]) -> int:
    return counts[part["bom-ref"]] + sum(_total(inner, counts) for inner in part.get("components", []))


def _hashes(part: Part) -> list[str]:
    return [entry["content"] for entry in part.get("hashes", [])]


def _pinned(part: Part, inputs: Inputs) -> Iterator[str]:
    """What a component says of itself and the locks say otherwise."""
    said = properties(part)
    if "purl" in part and SAID_BY not in said:
        purl = PackageURL.from_string(part["purl"])
        wanted: Any = None
        if purl.type == "pypi":
            wanted = inputs.wheels.get(purl.name)
        elif purl.type == "deb":
            wanted = inputs.packages.get(purl.name)
        if purl.type in ("pypi", "deb"):
            if wanted is None or wanted.version != part.get("version"):
                yield f"{label(part)} is not in the lock"
            elif _hashes(part) != [wanted.sha256]:
                yield f"{label(part)} has another SHA-256 than the lock: {', '.join(_hashes(part)) or 'none'}"
    if path := said.get("nix:output_path"):
        known = inputs.registration.get(path)
        if known is None:
            yield f"{label(part)}: {path} is not in the image"
        elif known.nar_hash != said.get("nix:nar_hash"):
            yield f"{label(part)} has another NAR hash than the store: {said.get('nix:nar_hash', 'none')}"


def content_problems(document: dict[str, Any], inputs: Inputs) -> list[str]:
    """What is wrong between a document and the image: no lines where nothing."""
    parts: list[Part] = document.get("components", [])
    counts, problems = ownership(parts, inputs.content.files)
    for part in nested(parts):
        stated_elsewhere = SAID_BY in properties(part)
        if not stated_elsewhere and _total(part, counts) == 0:
            problems.append(f"{label(part)} has no files in the image")
        if not stated_elsewhere and not part.get("licenses"):
            problems.append(f"{label(part)} has no licence")
        problems += _pinned(part, inputs)
    there = {
        PackageURL.from_string(part["purl"]).name
        for part in parts
        if part.get("purl", "").startswith("pkg:pypi/")
    }
    problems += [
        f"the wheel {name} of the lock is no component" for name in sorted(inputs.wheels.keys() - there)
    ]
    image = properties(document["metadata"]["component"])
    if image.get("gb10:image-id") != f"sha256:{inputs.content.config}":
        problems.append("the document is of another image")
    return problems


def problems(text: str, inputs: Inputs) -> list[str]:
    """All that is wrong with a document."""
    return schema_problems(text) or content_problems(json.loads(text), inputs)


def counted(document: dict[str, Any]) -> str:
    """A document in a line."""
    parts: list[Part] = document["components"]
    within = [part for part in nested(parts) if part not in parts]
    said = sum(SAID_BY in properties(part) for part in within)
    patched = [part for part in parts if "patches" in part.get("pedigree", {})]
    patches = sum(len(part["pedigree"]["patches"]) for part in patched)
    return (
        f"{len(parts)} components, {len(within) - said} within them that have files, "
        f"{said} that wheels' own bills of materials name; "
        f"{patches} patches on {', '.join(part['name'] for part in patched) or 'none'}"
    )
