"""Reads and checks python/profiles.toml, the input that people edit."""

import tomllib
from dataclasses import dataclass
from typing import Annotated, Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import AfterValidator, BaseModel, Field, StringConstraints, ValidationError

from gb10_lock.pylock import LockError, Wheel


def _requirement(text: str) -> str:
    Requirement(text)  # InvalidRequirement is a ValueError
    return text


Text = Annotated[str, StringConstraints(pattern=r"\S")]
Line = Annotated[str, AfterValidator(_requirement)]
System = Literal["x86_64-linux", "aarch64-linux"]
Python = Annotated[str, StringConstraints(pattern=r"^3\.\d+$")]
Glibc = Annotated[str, StringConstraints(pattern=r"^2\.\d+$")]
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class _Table(BaseModel, extra="forbid", strict=True):
    """A TOML table: no other keys, no other types."""


class _Constraint(_Table):
    requirement: Line
    reason: Text


class _Exclusion(_Table):
    name: Line
    reason: Text


class _Profile(_Table):
    base: str | None = None
    systems: list[System] = Field(min_length=1)
    pythons: list[Python] = Field(min_length=1)
    glibc: Glibc
    dependencies: bool = True
    requirements: list[Line] = Field(min_length=1)
    constraints: list[_Constraint] = []
    exclusions: list[_Exclusion] = []
    fixed: list[str] = []


class _FixedWheel(_Table):
    file: Text
    sha256: Sha256
    size: int | None = None


class _Fixed(_Table):
    name: Line
    version: Text
    index: Text
    requires: list[Line]
    reason: Text
    wheels: dict[str, _FixedWheel]


class _Inputs(_Table):
    version: Literal[1]
    profiles: dict[str, _Profile] = Field(min_length=1)
    fixed: dict[str, _Fixed] = {}
    # Nix reads these.
    allowed_duplicates: list[dict[str, object]] = Field(default=[], alias="allowed-duplicates")


@dataclass(frozen=True)
class Environment:
    """A profile on one system with one Python version."""

    name: str
    profile: _Profile
    system: str
    python: str
    projects: list[_Fixed]

    @property
    def machine(self) -> str:
        """The processor, as in wheels' names."""
        return self.system.removesuffix("-linux")

    @property
    def place(self) -> str:
        """System and interpreter tag, such as x86_64-linux-cp312."""
        return f"{self.system}-cp{self.python.replace('.', '')}"

    @property
    def label(self) -> str:
        """The name in messages; the lock is pylock.LABEL.toml."""
        return f"{self.name}-{self.place}"

    @property
    def base(self) -> str | None:
        """The label of the environment that this one is put on top of."""
        return f"{self.profile.base}-{self.place}" if self.profile.base else None

    @property
    def fixed(self) -> list[Wheel]:
        """The wheels that no package index offers."""
        chosen = [(one, one.wheels[self.place]) for one in self.projects]
        return [Wheel(one.name, one.version, it.file, it.sha256, it.size, one.index) for one, it in chosen]

    @property
    def fixed_requires(self) -> list[str]:
        """What these depend on."""
        return [line for one in self.projects for line in one.requires]

    @property
    def asked(self) -> set[str]:
        """The projects that the profile itself asks for here."""
        here = {"platform_machine": self.machine, "python_version": self.python}
        wanted = [Requirement(line) for line in self.profile.requirements]
        return {canonicalize_name(one.name) for one in wanted if not one.marker or one.marker.evaluate(here)}


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
        raise LockError(f"profiles.toml: {place}: {first['msg']}, not {first['input']!r:.60}") from None
    found = []
    for name, profile in sorted(inputs.profiles.items()):
        if missing := set(profile.fixed) - inputs.fixed.keys():
            raise LockError(f"profiles.{name}: there is no [fixed.{min(missing)}]")
        projects = [inputs.fixed[item] for item in profile.fixed]
        found += [
            Environment(name, profile, system, python, projects)
            for system in profile.systems
            for python in profile.pythons
        ]
    bases = {env.label for env in found if env.base is None}
    for env in found:
        if env.base is not None and env.base not in bases:
            raise LockError(f"profiles.{env.name}: there is no {env.base} without a base of its own")
        for project in env.projects:
            if env.place not in project.wheels:
                raise LockError(
                    f"profiles.{env.name}: {project.name} is fixed and has no wheel for {env.place}"
                )
    return sorted(found, key=lambda env: (env.base is not None, env.label))
