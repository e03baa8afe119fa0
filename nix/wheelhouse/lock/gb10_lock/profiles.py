"""Reads python/profiles.toml, the input that people write."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gb10_lock.errors import LockError

_NAME = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_PYTHON = re.compile(r"^3\.[0-9]+$")
_GLIBC = re.compile(r"^2\.[0-9]+$")


def canonical(name: str) -> str:
    """A project's name as package indexes compare it: lower case, single dashes."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement: str) -> str:
    """The canonical project name at the front of a requirement such as `torch==2.13.0`."""
    match = _NAME.match(requirement.strip())
    if match is None:
        raise LockError(f"requirement {requirement!r} does not start with a project name")
    return canonical(match.group())


@dataclass(frozen=True)
class FixedWheel:
    """One wheel that no package index offers: its name and hash are written by hand."""

    file: str
    sha256: str
    size: int | None


@dataclass(frozen=True)
class Fixed:
    """A project that a profile takes from `FixedWheel`s; `requires` stands in for its metadata."""

    name: str
    version: str
    index: str
    needed_by: tuple[str, ...]
    requires: tuple[str, ...]
    wheels: Mapping[tuple[str, str], FixedWheel]


@dataclass(frozen=True)
class Profile:
    """What one environment is made of, before resolution.

    Without `dependencies` it is the required wheels alone: a set of files to read, which nothing is run from.
    """

    name: str
    base: str | None
    systems: tuple[str, ...]
    pythons: tuple[str, ...]
    glibc: str
    requirements: tuple[str, ...]
    constraints: tuple[str, ...]
    overrides: tuple[str, ...]
    exclusions: tuple[str, ...]
    fixed: tuple[str, ...]
    dependencies: bool


@dataclass(frozen=True)
class AllowedDuplicate:
    """A file that several wheels of a profile ship, and why that is no harm."""

    profiles: tuple[str, ...]
    path: str
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Inputs:
    """The whole of python/profiles.toml."""

    machines: Mapping[str, str]
    profiles: Mapping[str, Profile]
    fixed: Mapping[str, Fixed]
    duplicates: tuple[AllowedDuplicate, ...] = field(default=())


class _Table:
    """A TOML table that complains with its own name and refuses keys that nobody reads."""

    def __init__(self, where: str, value: object) -> None:
        if not isinstance(value, dict):
            raise LockError(f"{where} must be a table")
        self.where = where
        self.rest: dict[str, object] = dict(value)

    def text(self, key: str, pattern: re.Pattern[str] | None = None) -> str:
        value = self.rest.pop(key, None)
        if not isinstance(value, str) or not value.strip():
            raise LockError(f"{self.where}: `{key}` must be a text")
        if pattern is not None and not pattern.match(value):
            raise LockError(f"{self.where}: `{key}` is {value!r}, expected the form {pattern.pattern}")
        return value

    def texts(self, key: str, *, required: bool = False) -> tuple[str, ...]:
        value = self.rest.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise LockError(f"{self.where}: `{key}` must be a list of texts")
        if required and not value:
            raise LockError(f"{self.where}: `{key}` must not be empty")
        return tuple(value)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.rest.pop(key, default)
        if not isinstance(value, bool):
            raise LockError(f"{self.where}: `{key}` must be true or false")
        return value

    def tables(self, key: str) -> list["_Table"]:
        value = self.rest.pop(key, [])
        if not isinstance(value, list):
            raise LockError(f"{self.where}: `{key}` must be a list of tables")
        return [_Table(f"{self.where}.{key}[{number}]", item) for number, item in enumerate(value)]

    def end(self) -> None:
        if self.rest:
            raise LockError(f"{self.where}: unknown key `{min(self.rest)}`")


def _with_reason(table: _Table, key: str) -> str:
    value = table.text(key)
    table.text("reason")
    table.end()
    return value


def _profile(name: str, table: _Table) -> Profile:
    profile = Profile(
        name=name,
        base=table.text("base") if "base" in table.rest else None,
        systems=table.texts("systems", required=True),
        pythons=table.texts("pythons", required=True),
        glibc=table.text("glibc", _GLIBC),
        requirements=table.texts("requirements", required=True),
        constraints=tuple(_with_reason(item, "requirement") for item in table.tables("constraints")),
        overrides=tuple(_with_reason(item, "requirement") for item in table.tables("overrides")),
        exclusions=tuple(canonical(_with_reason(item, "name")) for item in table.tables("exclusions")),
        fixed=table.texts("fixed"),
        dependencies=table.flag("dependencies", default=True),
    )
    table.end()
    for requirement in (*profile.requirements, *profile.constraints, *profile.overrides):
        requirement_name(requirement)
    for python in profile.pythons:
        if not _PYTHON.match(python):
            raise LockError(f"{table.where}: Python version {python!r} does not look like 3.12")
    return profile


def _fixed(table: _Table) -> Fixed:
    wheels: dict[tuple[str, str], FixedWheel] = {}
    for item in table.tables("wheels"):
        key = (item.text("system"), item.text("python", _PYTHON))
        size = item.rest.pop("size", None)
        if size is not None and (not isinstance(size, int) or size <= 0):
            raise LockError(f"{item.where}: `size` must be a number of bytes")
        if key in wheels:
            raise LockError(f"{item.where}: a second wheel for {key[0]}, Python {key[1]}")
        wheels[key] = FixedWheel(item.text("file"), item.text("sha256", _SHA256), size)
        item.end()
    fixed = Fixed(
        name=canonical(table.text("name")),
        version=table.text("version"),
        index=table.text("index"),
        needed_by=table.texts("needed-by", required=True),
        requires=table.texts("requires"),
        wheels=wheels,
    )
    table.text("reason")
    table.end()
    return fixed


def _check_references(inputs: Inputs) -> None:
    for profile in inputs.profiles.values():
        where = f"profiles.{profile.name}"
        for system in profile.systems:
            if system not in inputs.machines:
                raise LockError(f"{where}: system {system!r} is not listed under [systems]")
        for name in profile.fixed:
            if name not in inputs.fixed:
                raise LockError(f"{where}: there is no [fixed.{name}]")
            for key in ((system, python) for system in profile.systems for python in profile.pythons):
                if key not in inputs.fixed[name].wheels:
                    raise LockError(
                        f"fixed.{name}: no wheel for {key[0]}, Python {key[1]}, which {where} needs"
                    )
        if profile.base is None:
            continue
        base = inputs.profiles.get(profile.base)
        if base is None or base.base is not None:
            raise LockError(f"{where}: base {profile.base!r} must be a profile without a base of its own")
        if not set(profile.systems) <= set(base.systems) or not set(profile.pythons) <= set(base.pythons):
            raise LockError(f"{where}: base {base.name!r} does not cover all its systems and Python versions")
    for duplicate in inputs.duplicates:
        for name in duplicate.profiles:
            if name not in inputs.profiles:
                raise LockError(f"allowed-duplicates: {duplicate.path}: there is no profile {name!r}")


def parse(text: str) -> Inputs:
    """Turns the text of profiles.toml into `Inputs`; LockError names the table and key that is wrong."""
    try:
        top = _Table("profiles.toml", tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise LockError(f"profiles.toml is not valid TOML: {error}") from None
    if top.rest.pop("version", None) != 1:
        raise LockError("profiles.toml: `version` must be 1")
    systems = _Table("systems", top.rest.pop("systems", {}))
    machines = {name: systems.text(name) for name in sorted(systems.rest)}
    profiles = _Table("profiles", top.rest.pop("profiles", {}))
    fixed = _Table("fixed", top.rest.pop("fixed", {}))
    duplicates = []
    for item in top.tables("allowed-duplicates"):
        packages = tuple(canonical(name) for name in item.texts("packages", required=True))
        duplicates.append(
            AllowedDuplicate(item.texts("profiles", required=True), item.text("path"), packages)
        )
        item.text("reason")
        item.end()
    top.end()
    inputs = Inputs(
        machines=machines,
        profiles={
            name: _profile(name, _Table(f"profiles.{name}", profiles.rest[name]))
            for name in sorted(profiles.rest)
        },
        fixed={name: _fixed(_Table(f"fixed.{name}", fixed.rest[name])) for name in sorted(fixed.rest)},
        duplicates=tuple(duplicates),
    )
    if not inputs.profiles:
        raise LockError("profiles.toml: no [profiles.NAME] table")
    _check_references(inputs)
    return inputs


def load(path: Path) -> Inputs:
    """Reads and checks profiles.toml."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LockError(f"cannot read {path}: {error.strerror}") from None
    return parse(text)
