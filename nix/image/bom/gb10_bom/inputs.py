"""What a bill of materials is made of: the plan that nix/image/sbom.nix writes, and the files it names."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gb10_bom import archive, debian, patches
from gb10_bom.errors import BomError


@dataclass(frozen=True)
class Item:
    """A store path that the flake puts into the image.

    Attributes:
        kind: ``wheel``, ``cut`` (out of Debian's packages), ``package`` (ours), ``model`` or ``nixpkgs``
        licence: an expression of SPDX; of a wheel, licences.toml has it
        derivation: the .drv file that makes it
        patches: what was applied to a wheel
        changes: what else was done to a wheel's files, as a script, or ""
    """

    path: str
    kind: str
    name: str
    version: str = ""
    description: str = ""
    licence: str = ""
    derivation: str = ""
    patches: list[str] = field(default_factory=list)
    changes: str = ""


@dataclass(frozen=True)
class Wheel:
    """A wheel as the lock names it."""

    name: str
    version: str
    file: str
    sha256: str
    index: str


@dataclass(frozen=True)
class Valid:
    """A store path as Nix registered it."""

    nar_hash: str
    references: list[str]


@dataclass(frozen=True)
class Vendored:
    """A library of others in a wheel (nix/image/vendored.toml).

    Attributes:
        files: patterns of paths in site-packages
        said: its name in the wheel's own bill of materials, or ""
    """

    wheel: str
    files: list[str]
    name: str
    licence: str
    said: str = ""


@dataclass(frozen=True)
class Inputs:
    """All that is known of an image."""

    name: str
    version: str
    description: str
    licence: str
    system: str
    profile: str
    site_packages: str
    items: list[Item]
    root_files: list[str]
    content: archive.Content
    registration: dict[str, Valid]
    wheels: dict[str, Wheel]
    licences: dict[str, str]
    vendored: list[Vendored]
    packages: dict[str, debian.Package]
    package_licences: dict[str, str]
    cuts: dict[str, dict[str, list[str]]]
    patches: dict[str, patches.Patch]
    store: str = "/nix/store"

    @property
    def triple(self) -> str:
        """The architecture's name in Debian's paths."""
        return debian.TRIPLES[self.system]


def wheels_of(text: str) -> dict[str, Wheel]:
    """The wheels of a lock by project name."""
    found = {}
    for package in tomllib.loads(text)["packages"]:
        [wheel] = package["wheels"]
        found[package["name"]] = Wheel(
            package["name"],
            package["version"],
            wheel["path"],
            wheel["hashes"]["sha256"],
            package.get("tool", {}).get("gb10", {}).get("index", "pypi"),
        )
    return found


def licences_of(text: str, profile: str, system: str) -> dict[str, str]:
    """Wheel -> its licence in a profile on a system, as an expression of SPDX."""
    table = tomllib.loads(text)
    found: dict[str, str] = dict(table["wheels"])
    for more in table["also"]:
        if profile in more["profiles"] and system in more["systems"]:
            # A name of nixpkgs, which SPDX does not have.
            found[more["name"]] = f"({found[more['name']]}) AND LicenseRef-nixpkgs-{more['licence']}"
    return found


def registered(text: str) -> dict[str, Valid]:
    """What nixpkgs' closureInfo writes for ``nix-store --load-db``: path, hash, size, deriver, references."""
    lines = iter(text.splitlines())
    found = {}
    for path in lines:
        nar_hash, _size, _deriver, count = (next(lines) for _ in range(4))
        found[path] = Valid(nar_hash, sorted(next(lines) for _ in range(int(count))))
    return found


def store_path(file: str, store: str) -> str:
    """The store path that a file is of, or ""."""
    if not file.startswith(f"{store}/"):
        return ""
    return f"{store}/{file.removeprefix(f'{store}/').partition('/')[0]}"


def unlisted(items: list[Item], content: archive.Content) -> list[Item]:
    """What nixpkgs brings into the image beside the items: all that is known of it is its name."""
    listed = {item.path for item in items}
    paths = {path for file in content.files if (path := store_path(file, "/nix/store"))}
    found = []
    for path in sorted(paths - listed):
        # As Nix's parseDrvName: the version begins at the first dash before what is no letter.
        match = re.fullmatch(r"/nix/store/[^-]+-(.+?)(?:-([^a-zA-Z].*))?", path)
        if match is None:
            raise BomError(f"{path} is no path of the store")
        found.append(Item(path, "nixpkgs", match[1], match[2] or "", licence="LicenseRef-not-known-here"))
    return found


def _rows(text: str) -> Iterator[Vendored]:
    for row in tomllib.loads(text)["part"]:
        yield Vendored(**row)


def read(plan: dict[str, Any]) -> Inputs:
    """The inputs that a plan names.

    Raises:
        BomError: one of them cannot be read or is not as it should be.
    """

    def text(key: str) -> str:
        return Path(plan[key]).read_text(encoding="utf-8")

    try:
        items = [Item(**item) for item in plan["items"]]
        content = archive.load(Path(plan["content"]))
        cut = plan["base"] == "debian"
        if not cut:
            items += unlisted(items, content)
        table = tomllib.loads(text("debianLicences"))["packages"] if cut else {}
        more: dict[str, Wheel] = {}
        for lock in plan.get("moreLocks", []):
            more |= wheels_of(Path(lock).read_text(encoding="utf-8"))
        return Inputs(
            **plan["image"],
            system=plan["system"],
            profile=plan["profile"],
            site_packages=plan["sitePackages"],
            items=items,
            root_files=plan["rootFiles"],
            content=content,
            registration=registered(text("registration")),
            wheels=wheels_of(text("lock")) | more,
            licences=licences_of(text("licences"), plan["profile"], plan["system"]),
            vendored=list(_rows(text("vendored"))),
            packages=debian.locked(text("debianLock"), plan["system"]) if cut else {},
            package_licences=table,
            cuts=json.loads(text("debianFiles")) if cut else {},
            patches={path: patches.load(Path(path)) for item in items for path in item.patches},
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BomError(f"the plan cannot be read ({type(error).__name__}: {error})") from None
