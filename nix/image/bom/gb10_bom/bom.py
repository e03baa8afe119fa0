"""A bill of materials in CycloneDX's model, with the library of its authors.

What a component is found at, its occurrences, are paths in the image: a file is of the component with the
longest one that it lies at or below (check.py reads them).
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from cyclonedx.model import (
    AttachedText,
    ExternalReference,
    ExternalReferenceType,
    HashAlgorithm,
    HashType,
    Property,
    XsUri,
)
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType, Diff, Patch, PatchClassification, Pedigree
from cyclonedx.model.component_evidence import ComponentEvidence, Occurrence
from cyclonedx.model.issue import IssueClassification, IssueType, IssueTypeSource
from cyclonedx.model.license import LicenseAcknowledgement, LicenseExpression
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from gb10_bom import debian, patches
from gb10_bom.errors import BomError
from gb10_bom.inputs import Inputs, Item, Wheel, store_path

SAID_BY = "gb10:said-by"
"""Property of a part that a wheel's own bill of materials names: where that lies. It has no files itself."""

_TYPES = {
    "wheel": ComponentType.LIBRARY,
    "cut": ComponentType.PLATFORM,
    "nixpkgs": ComponentType.LIBRARY,
    "package": ComponentType.APPLICATION,
    "model": ComponentType.MACHINE_LEARNING_MODEL,
}
_ARCHITECTURES = {"x86_64-linux": "amd64", "aarch64-linux": "arm64"}


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def _licence(expression: str) -> list[LicenseExpression]:
    if not expression:
        return []
    return [LicenseExpression(expression, acknowledgement=LicenseAcknowledgement.CONCLUDED)]


def _found_at(paths: Iterable[str]) -> ComponentEvidence:
    return ComponentEvidence(occurrences=[Occurrence(location=path.rstrip("/")) for path in paths])


def wheel_purl(wheel: Wheel) -> PackageURL:
    """The package URL of a wheel: its project, version and file."""
    return PackageURL("pypi", None, wheel.name, wheel.version, {"file_name": wheel.file})


def package_purl(package: debian.Package) -> PackageURL:
    """The package URL of a package of Debian 12."""
    qualifiers = {"arch": package.architecture, "distro": "debian-12"}
    return PackageURL("deb", "debian", package.name, package.version, qualifiers)


def image_purl(name: str, tag: str, system: str) -> PackageURL:
    """The package URL of an image. Its digest, which a registry gives, is not known here."""
    return PackageURL("oci", None, name, None, {"arch": _ARCHITECTURES[system], "tag": tag})


def _patch(patch: patches.Patch) -> Patch:
    """A patch as a pedigree has it: the diff, and what it answers."""
    answered = IssueType(
        type=IssueClassification.DEFECT,
        id=patch.file,
        name=patch.title,
        description=patch.fields["Symptom"],
        source=IssueTypeSource(name=f"tested by {patch.fields['Test']}"),
        references=[XsUri(link) for link in patch.links],
    )
    diff = Diff(text=AttachedText(content=patch.text, content_type="text/x-diff"))
    return Patch(type=PatchClassification.UNOFFICIAL, diff=diff, resolves=[answered])


class _Writer:
    """Makes the components of one image."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.by_path: dict[str, list[str]] = defaultdict(list)
        for file in inputs.content.files:
            if path := store_path(file, inputs.store):
                self.by_path[path].append(file)

    def component(self, item: Item) -> Component:
        """A store path's component, with those within it."""
        known = self.inputs.registration.get(item.path)
        if known is None:
            raise BomError(f"{item.path} is listed and is not in what the image needs")
        nix = {"output_path": item.path, "nar_hash": known.nar_hash, "drv_path": item.derivation}
        made = Component(
            type=_TYPES[item.kind],
            name=item.name,
            version=item.version or (self.inputs.version if item.kind in ("package", "model") else None),
            description=item.description or None,
            bom_ref=item.path,
            properties=[Property(name=f"nix:{key}", value=value) for key, value in nix.items() if value],
        )
        match item.kind:
            case "wheel":
                self._wheel(made, item)
            case "cut":
                self._cut(made, item)
            case _:
                made.purl = PackageURL("generic", None, item.name, made.version)
                made.licenses = _licence(item.licence)
                made.evidence = _found_at([item.path])
        return made

    def _wheel(self, made: Component, item: Item) -> None:
        wheel = self.inputs.wheels.get(item.name)
        if wheel is None or wheel.version != item.version:
            raise BomError(f"the lock of {self.inputs.profile} has no {item.name} {item.version}")
        made.purl = wheel_purl(wheel)
        made.licenses = _licence(self.inputs.licences.get(item.name, ""))
        made.hashes = [_sha256(wheel.sha256)]
        made.properties.add(Property(name="gb10:index", value=wheel.index))
        made.evidence = _found_at([item.path])
        made.external_references = list(self._own_boms(item))
        made.components = list(self._vendored(item))
        if item.patches or item.changes:
            upstream = Component(
                type=ComponentType.LIBRARY,
                name=item.name,
                version=item.version,
                bom_ref=f"{item.path}#upstream",
                purl=made.purl,
                hashes=[_sha256(wheel.sha256)],
            )
            made.pedigree = Pedigree(
                ancestors=[upstream],
                patches=[_patch(self.inputs.patches[path]) for path in item.patches],
                notes=f"After it was unpacked: {item.changes.strip()}" if item.changes else None,
            )

    def _boms_in(self, item: Item) -> list[str]:
        """The bills of materials that a wheel brings (PEP 770)."""
        files = self.by_path[item.path]
        return [file for file in files if PurePosixPath(file).match("*.dist-info/sboms/*.json")]

    def _own_boms(self, item: Item) -> Iterator[ExternalReference]:
        for file in self._boms_in(item):
            url = XsUri(file.removeprefix(f"{item.path}/"))
            yield ExternalReference(type=ExternalReferenceType.BOM, url=url)

    def _said(self, item: Item) -> dict[str, tuple[str, dict[str, Any]]]:
        """Name -> where it is said, and the part: what a wheel's own bills name, without build tools."""
        found: dict[str, tuple[str, dict[str, Any]]] = {}
        for file in self._boms_in(item):
            # Versions of CycloneDX that the library's reader does not know are among them.
            data = json.loads(Path(file).read_text(encoding="utf-8"))
            for part in data.get("components", []) if data.get("bomFormat") == "CycloneDX" else []:
                # A project of PyPI is this wheel, or another one that the image has by itself.
                if not part.get("purl", "").startswith("pkg:pypi/") and part.get("scope") != "excluded":
                    found[f"{part['name']} {part.get('version', '')}"] = (file, part)
        return found

    def _vendored(self, item: Item) -> Iterator[Component]:
        """What is within a wheel: libraries with files of their own, and what was compiled into its files."""
        said = self._said(item)
        site = f"{item.path}/{self.inputs.site_packages}/"
        named = set()
        for row in self.inputs.vendored:
            if row.wheel != item.name:
                continue
            files = [
                file
                for file in self.by_path[item.path]
                if file.startswith(site)
                and any(fnmatchcase(file.removeprefix(site), pattern) for pattern in row.files)
            ]
            # Another architecture's wheel may do without.
            if files:
                known = next((part for _, part in said.values() if row.said and part["name"] == row.said), {})
                named.add(row.said)
                yield Component(
                    type=ComponentType.LIBRARY,
                    name=row.name,
                    version=known.get("version"),
                    bom_ref=f"{item.path}#{row.name}",
                    purl=PackageURL.from_string(known["purl"]) if "purl" in known else None,
                    licenses=_licence(row.licence),
                    evidence=_found_at(files),
                )
        for place, part in said.values():
            # Without a package URL it may be a choice of whoever builds the wheel from source.
            if part["name"] in named or "purl" not in part:
                continue
            expressions = [
                entry.get("expression") or entry["license"].get("id") or entry["license"]["name"]
                for entry in part.get("licenses", [])
            ]
            yield Component(
                type=ComponentType.LIBRARY,
                name=part["name"],
                version=part.get("version"),
                bom_ref=f"{item.path}#{part['purl']}",
                purl=PackageURL.from_string(part["purl"]),
                licenses=_licence(" AND ".join(expressions)),
                properties=[Property(name=SAID_BY, value=place)],
            )

    def _cut(self, made: Component, item: Item) -> None:
        """A package of the Debian base: the packages of Debian that its files came from are within it."""
        inputs = self.inputs
        table = inputs.cuts.get(item.name)
        if table is None:
            raise BomError(
                f"nix/image/debian-files.json does not know {item.name}; write it anew (its module says how)"
            )
        there = set(self.by_path[item.path])
        parts = []
        for package_name, places in table.items():
            paths = [f"{item.path}/{debian.on(place, inputs.system)}" for place in places]
            paths = [path for path in paths if path in there or path.endswith("/")]
            name = debian.on(package_name, inputs.system)
            if name == debian.OURS:
                made.evidence = _found_at(paths)
                continue
            if not paths:
                continue
            package = inputs.packages.get(name)
            if package is None:
                raise BomError(
                    f"nix/image/debian-files.json names {name}, which is not in nix/debian/packages.lock"
                )
            parts.append(
                Component(
                    type=ComponentType.LIBRARY,
                    name=name,
                    version=package.version,
                    bom_ref=f"{item.path}#{name}",
                    purl=package_purl(package),
                    licenses=_licence(inputs.package_licences.get(package_name, "")),
                    hashes=[_sha256(package.sha256)],
                    evidence=_found_at(paths),
                )
            )
        made.components = parts
        made.purl = PackageURL("generic", "gb10", item.name, None)
        # How they are cut is ours; what is cut says its own.
        made.licenses = _licence(item.licence)

    def root(self) -> Component:
        """The files outside the store."""
        return Component(
            type=ComponentType.FILE,
            name="root folder",
            version=self.inputs.version,
            description="What lies outside the store: names for users, links to the shell and to the command",
            bom_ref="root folder",
            licenses=_licence("Apache-2.0"),
            evidence=_found_at(f"/{file}" for file in self.inputs.root_files),
        )


def make(inputs: Inputs) -> Bom:
    """The bill of materials of an image."""
    image = Component(
        type=ComponentType.CONTAINER,
        name=inputs.name,
        version=inputs.version,
        description=inputs.description,
        bom_ref=inputs.name,
        purl=image_purl(inputs.name, inputs.version, inputs.system),
        licenses=_licence(inputs.licence),
        properties=[
            Property(name="gb10:image-id", value=f"sha256:{inputs.content.config}"),
            Property(name="gb10:archive-sha256", value=inputs.content.archive),
            Property(name="nix:system", value=inputs.system),
        ],
    )
    writer = _Writer(inputs)
    components = {item.path: writer.component(item) for item in inputs.items}
    root = writer.root()
    library = Component(
        type=ComponentType.LIBRARY,
        name="cyclonedx-python-lib",
        version=version("cyclonedx-python-lib"),
        bom_ref="tool:cyclonedx-python-lib",
    )
    tool = Component(
        type=ComponentType.APPLICATION, name="gb10_bom", version=inputs.version, bom_ref="tool:gb10_bom"
    )
    bom = Bom(
        # The same image has the same.
        serial_number=uuid.uuid5(uuid.NAMESPACE_OID, f"gb10:{inputs.content.archive}"),
        metadata=BomMetaData(
            component=image,
            timestamp=datetime.fromisoformat(inputs.content.created).astimezone(UTC),
            tools=ToolRepository(components=[library, tool]),
        ),
        components=[*components.values(), root],
    )
    bom.register_dependency(image, [root, *components.values()])
    for path, component in components.items():
        needed = inputs.registration[path].references
        bom.register_dependency(
            component, [components[other] for other in needed if other in components and other != path]
        )
    return bom


def to_json(bom: Bom) -> str:
    """CycloneDX 1.6 in JSON. The library has some lists in an order of chance; here a model is one text."""
    return json.dumps(_in_order(json.loads(JsonV1Dot6(bom).output_as_string())), indent=1) + "\n"


def _in_order(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _in_order(data[key]) for key in sorted(data)}
    if isinstance(data, list):
        return sorted((_in_order(item) for item in data), key=lambda item: json.dumps(item, sort_keys=True))
    return data
