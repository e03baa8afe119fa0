"""SLSA provenance (v1) of an image's build, as an in-toto statement that nobody signed (docs/security.md)."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.json_format import (  # type: ignore[import-untyped]
    MessageToDict,
    ParseDict,
    ParseError,
)
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2  # type: ignore[import-untyped]
from in_toto_attestation.v1 import statement_pb2  # type: ignore[import-untyped]
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor  # type: ignore[import-untyped]
from in_toto_attestation.v1.statement import Statement  # type: ignore[import-untyped]

from gb10_bom.bom import package_purl, wheel_purl
from gb10_bom.errors import BomError
from gb10_bom.inputs import Inputs

PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:gb10:build-type:nix-flake-output:1"
BUILDER = "urn:gb10:builder:nix-of-whoever-built-it"
"""No service: whoever ran Nix. Who publishes puts a builder of their own in its place, and signs for it."""


def _file(path: Path, name: str) -> ResourceDescriptor:
    return ResourceDescriptor(name=name, digest={"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})


def _flake(revision: str, nar_hash: str) -> ResourceDescriptor:
    """The flake's files, by their commit and their NAR hash as far as Nix said them."""
    digest = {}
    if re.fullmatch("[0-9a-f]{40}", revision):
        digest["gitCommit"] = revision
    if nar_hash.startswith("sha256-"):
        # As `nix hash path` has it, in hex: in-toto wants that of hashes.
        digest["nar-sha256"] = base64.b64decode(nar_hash.removeprefix("sha256-"), validate=True).hex()
    return ResourceDescriptor(name="the flake", digest=digest, annotations={"nix:nar_hash": nar_hash})


def _materials(inputs: Inputs, flake: ResourceDescriptor, locks: dict[str, Path]) -> Iterator[Any]:
    """What the build is determined by: the flake's files, the locks, and what these name."""
    yield flake
    for name, path in sorted(locks.items()):
        yield _file(path, name)
    for wheel in sorted(inputs.wheels.values(), key=lambda wheel: wheel.name):
        yield ResourceDescriptor(
            name=wheel.file, uri=wheel_purl(wheel).to_string(), digest={"sha256": wheel.sha256}
        )
    for package in sorted(inputs.packages.values(), key=lambda package: package.name):
        yield ResourceDescriptor(
            name=package.name, uri=package_purl(package).to_string(), digest={"sha256": package.sha256}
        )
    for patch in sorted(
        {patch.file: patch for patch in inputs.patches.values()}.values(), key=lambda it: it.file
    ):
        yield ResourceDescriptor(
            name=patch.file, digest={"sha256": hashlib.sha256(patch.text.encode()).hexdigest()}
        )


def _outputs(inputs: Inputs) -> Iterator[ResourceDescriptor]:
    """What was built on the way: the store paths in the image, and the derivations that made them."""
    for item in sorted(inputs.items, key=lambda item: item.path):
        said = {"nix:nar_hash": inputs.registration[item.path].nar_hash, "nix:drv_path": item.derivation}
        yield ResourceDescriptor(
            name=item.path, annotations={key: value for key, value in said.items() if value}
        )


def _dict(descriptor: ResourceDescriptor) -> dict[str, Any]:
    descriptor.validate()
    return dict(MessageToDict(descriptor.pb))


def make(
    inputs: Inputs, *, output: str, revision: str, nar_hash: str, base: str, locks: dict[str, Path]
) -> dict[str, Any]:
    """The statement about an image.

    Args:
        inputs: what the image is made of
        output: the flake's attribute that was built
        revision: the commit, with ``-dirty`` after it where files differ from it, or ``unknown``
        nar_hash: the hash of the flake's files, as Nix writes it, or ``unknown``
        base: ``debian`` or ``nixpkgs``
        locks: name in the repository -> file, of what pins the rest
    """
    materials = _materials(inputs, _flake(revision, nar_hash), locks)
    predicate = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {"output": output, "revision": revision, "base": base},
            "internalParameters": {"system": inputs.system},
            "resolvedDependencies": [_dict(one) for one in materials],
        },
        "runDetails": {
            "builder": {"id": BUILDER},
            "byproducts": [_dict(one) for one in _outputs(inputs)],
        },
    }
    subjects = [
        ResourceDescriptor(name=f"{inputs.name}: image id", digest={"sha256": inputs.content.config}),
        ResourceDescriptor(name=f"{inputs.name}: archive", digest={"sha256": inputs.content.archive}),
    ]
    statement = Statement([subject.pb for subject in subjects], PREDICATE, predicate)
    document: dict[str, Any] = MessageToDict(statement.pb)
    check(document)
    return document


def check(document: dict[str, Any]) -> None:
    """Hold a statement against in-toto's and SLSA's own types.

    Raises:
        BomError: they refuse it.
    """
    try:
        statement = Statement.copy_from_pb(ParseDict(document, statement_pb2.Statement()))
        statement.validate()
        if document["predicateType"] != PREDICATE:
            raise BomError(f"the predicate is no {PREDICATE}")
        provenance = ParseDict(document["predicate"], provenance_pb2.Provenance())
    except (ParseError, ValueError) as error:
        raise BomError(f"the provenance is not as in-toto wants it ({error})") from None
    definition = provenance.build_definition
    if (
        not definition.build_type
        or not definition.external_parameters
        or not provenance.run_details.builder.id
    ):
        raise BomError("the provenance lacks a build type, its parameters or a builder")


def to_json(document: dict[str, Any]) -> str:
    """A statement's or a predicate's text."""
    return json.dumps(document, indent=1, sort_keys=True) + "\n"
