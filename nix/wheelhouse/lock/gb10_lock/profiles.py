"""Reads and checks python/profiles.toml, the input that people edit."""

import tomllib
from dataclasses import dataclass
from typing import Annotated, Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from gb10_lock.pylock import LockError, Wheel


def _requirement(text: str) -> str:
    Requirement(text)  # its error is a ValueError
    return text


Text = Annotated[str, StringConstraints(pattern=r"\S")]
Line = Annotated[str, AfterValidator(_requirement)]
Python = Annotated[str, StringConstraints(pattern=r"^3\.\d+$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Rule(_Table):
    """A constraint or an override."""

    requirement: Line
    reason: Text


class _Exclusion(_Table):
    name: Line
    reason: Text


class Profile(_Table):
    """What an environment is made of; `base` is the profile that it is put on top of."""

    base: str | None = None
    systems: list[str] = Field(min_length=1)
    pythons: list[Python] = Field(min_length=1)
    glibc: Annotated[str, StringConstraints(pattern=r"^2\.\d+$")]
    # false: only what is asked for, to be read and not run.
    dependencies: bool = True
    requirements: list[Line] = Field(min_length=1)
    constraints: list[_Rule] = []
    overrides: list[_Rule] = []
    exclusions: list[_Exclusion] = []
    fixed: list[str] = []


class _FixedWheel(_Table):
    system: str
    python: Python
    file: Text
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    size: int | None = Field(default=None, gt=0)


class _Fixed(_Table):
    """A project that no package index offers; `requires` is what it depends on."""

    name: Line
    version: Text
    index: Text
    requires: list[Line]
    reason: Text
    wheels: list[_FixedWheel]

    def wheel(self, system: str, python: str) -> Wheel | None:
        """The wheel for one system and Python version."""
        for item in self.wheels:
            if (item.system, item.python) == (system, python):
                return Wheel(self.name, self.version, item.file, item.sha256, item.size, self.index)
        return None


class _AllowedDuplicate(_Table):
    """Nix reads these."""

    profiles: list[str]
    path: Text
    packages: list[str]
    reason: Text


class _Inputs(_Table):
    version: Literal[1]
    systems: dict[str, Text]
    profiles: dict[str, Profile] = Field(min_length=1)
    fixed: dict[str, _Fixed] = {}
    allowed_duplicates: list[_AllowedDuplicate] = Field(default=[], alias="allowed-duplicates")


@dataclass(frozen=True)
class Environment:
    """A profile on one system with one Python version; `fixed` are wheels that no index offers and what they depend on."""

    name: str
    profile: Profile
    system: str
    machine: str
    python: str
    fixed: tuple[tuple[Wheel, list[str]], ...]

    @property
    def label(self) -> str:
        """The name in messages; the lock is pylock.LABEL.toml."""
        return self._label(self.name)

    @property
    def base(self) -> str | None:
        """The label of the environment that this one is put on top of."""
        return self._label(self.profile.base) if self.profile.base else None

    @property
    def asked(self) -> set[str]:
        """The projects that the profile itself asks for on this system."""
        here = {"platform_machine": self.machine, "python_version": self.python}
        wanted = [Requirement(line) for line in self.profile.requirements]
        return {canonicalize_name(one.name) for one in wanted if not one.marker or one.marker.evaluate(here)}

    def _label(self, name: str) -> str:
        return f"{name}-{self.system}-cp{self.python.replace('.', '')}"


def parse(text: str) -> list[Environment]:
    """The environments of profiles.toml, those that others are put on top of first.

    LockError names the table and the key that is wrong.
    """
    try:
        inputs = _Inputs.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise LockError(f"profiles.toml is not valid TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise LockError(f"profiles.toml: {place}: {first['msg']} (it is {first['input']!r:.60})") from None
    found = []
    for name, profile in sorted(inputs.profiles.items()):
        for system in profile.systems:
            if system not in inputs.systems:
                raise LockError(f"profiles.{name}: system {system!r} is not listed under [systems]")
            for python in profile.pythons:
                fixed = []
                for item in profile.fixed:
                    project = inputs.fixed.get(item)
                    wheel = project.wheel(system, python) if project else None
                    if project is None or wheel is None:
                        raise LockError(
                            f"profiles.{name}: no [fixed.{item}] wheel for {system}, Python {python}"
                        )
                    fixed.append((wheel, project.requires))
                found.append(Environment(name, profile, system, inputs.systems[system], python, tuple(fixed)))
    bases = {env.label for env in found if not env.base}
    for env in found:
        if env.base and env.base not in bases:
            raise LockError(f"profiles.{env.name}: there is no {env.base} without a base of its own")
    for duplicate in inputs.allowed_duplicates:
        for name in duplicate.profiles:
            if name not in inputs.profiles:
                raise LockError(f"allowed-duplicates: {duplicate.path}: there is no profile {name!r}")
    return sorted(found, key=lambda env: (env.base is not None, env.label))
