"""One environment (profile, system, Python version) and its pinned resolution under python/locks/."""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from gb10_lock.errors import LockError
from gb10_lock.profiles import Fixed, Inputs, Profile, canonical, requirement_name
from gb10_lock.run import tool

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;#]+)[^#]*(?:#\s*(?:via )?(?P<why>.+))?$")
_NOTE = "# Written by `nix run .#lock`. Do not edit: change python/profiles.toml."
_STAMP = "# inputs sha256:"


@dataclass(frozen=True)
class Pin:
    """One resolved project: `why` lists what asks for it (`profile:NAME` or project names)."""

    name: str
    version: str
    why: tuple[str, ...]


@dataclass(frozen=True)
class Environment:
    """A profile on one system with one Python version."""

    profile: Profile
    system: str
    machine: str
    python: str
    fixed: Mapping[str, Fixed]

    @property
    def tag(self) -> str:
        """The interpreter tag, such as cp312."""
        return "cp" + self.python.replace(".", "")

    @property
    def label(self) -> str:
        """The name used in messages, and as the stem of the pins file."""
        return f"{self.profile.name}-{self.system}-{self.tag}"

    @property
    def base_label(self) -> str:
        """The label of the environment that this one is put on top of."""
        return f"{self.profile.base}-{self.system}-{self.tag}"


def environments(inputs: Inputs) -> list[Environment]:
    """All environments; those that others are put on top of come first."""
    found = [
        Environment(
            profile=profile,
            system=system,
            machine=inputs.machines[system],
            python=python,
            fixed={inputs.fixed[name].name: inputs.fixed[name] for name in profile.fixed},
        )
        for profile in inputs.profiles.values()
        for system in profile.systems
        for python in profile.pythons
    ]
    return sorted(found, key=lambda env: (env.profile.base is not None, env.label))


def parse_pins(text: str, where: str) -> list[Pin]:
    """Reads `name==version  # via a, b` lines, as uv and this tool write them."""
    pins = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = _PIN.match(line.strip())
        if match is None:
            raise LockError(f"{where}: cannot read the line {line.strip()!r}: expected name==version")
        why = (item.strip() for item in (match["why"] or "").split(","))
        pins.append(
            Pin(canonical(match["name"]), match["version"], tuple(sorted({item for item in why if item})))
        )
    names = [pin.name for pin in pins]
    for name in names:
        if names.count(name) > 1:
            raise LockError(f"{where}: {name} is pinned twice")
    return sorted(pins, key=lambda pin: pin.name)


def format_pins(pins: list[Pin], digest: str) -> str:
    """The text of a pins file."""
    lines = [_NOTE, _STAMP + digest]
    lines += [
        f"{pin.name}=={pin.version}  # {', '.join(pin.why)}" for pin in sorted(pins, key=lambda pin: pin.name)
    ]
    return "\n".join(lines) + "\n"


def digest(env: Environment, base: list[Pin]) -> str:
    """SHA-256 over everything that decides an environment's resolution, except time."""
    profile = env.profile
    inputs: dict[str, object] = {
        "system": env.system,
        "machine": env.machine,
        "python": env.python,
        "glibc": profile.glibc,
        "requirements": sorted(profile.requirements),
        "constraints": sorted(profile.constraints),
        "overrides": sorted(profile.overrides),
        "exclusions": sorted(profile.exclusions),
        "fixed": {name: [fixed.version, sorted(fixed.requires)] for name, fixed in env.fixed.items()},
        "base": [f"{pin.name}=={pin.version}" for pin in base],
    }
    if not profile.dependencies:
        inputs["dependencies"] = False
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def stamp(text: str) -> str | None:
    """The inputs digest recorded in a pins file, if it has one."""
    for line in text.splitlines():
        if line.startswith(_STAMP):
            return line.removeprefix(_STAMP).strip()
    return None


def resolve(env: Environment, base: list[Pin], old: str | None) -> list[Pin]:
    """Resolves with uv. Versions in `old` (a pins file's text) stay wherever they still fit."""
    profile = env.profile
    away = sorted({*profile.exclusions, *env.fixed})
    with TemporaryDirectory(prefix="gb10-lock-") as name:
        work = Path(name)
        out = work / "out.txt"
        if old is not None:
            out.write_text(old, encoding="utf-8")
        sources = {profile.name: profile.requirements}
        sources |= {fixed.name: fixed.requires for fixed in env.fixed.values() if fixed.requires}
        if len(sources) != 1 + sum(bool(fixed.requires) for fixed in env.fixed.values()):
            raise LockError(f"{env.label}: the profile and a fixed project must not share a name")
        for source, requirements in sources.items():
            (work / f"{source}.in").write_text("\n".join(requirements) + "\n", encoding="utf-8")
        # A marker that is never true is how a requirement is taken out of a resolution.
        overrides = [*profile.overrides, *(f"{item}; python_version < '3'" for item in away)]
        (work / "overrides.txt").write_text("\n".join(overrides) + "\n", encoding="utf-8")
        constraints = [*profile.constraints, *(f"{pin.name}=={pin.version}" for pin in base)]
        (work / "constraints.txt").write_text("\n".join(constraints) + "\n", encoding="utf-8")
        command = ["uv", "pip", "compile", "--quiet", "--no-header", "--annotation-style", "line"]
        command += ["--only-binary", ":all:", "--python", sys.executable, "--python-version", env.python]
        command += ["--python-platform", f"{env.machine}-manylinux_{profile.glibc.replace('.', '_')}"]
        command += [
            "--override",
            "overrides.txt",
            "--constraint",
            "constraints.txt",
            "--output-file",
            "out.txt",
        ]
        if not profile.dependencies:
            command.append("--no-deps")
        tool([*command, *(f"{source}.in" for source in sources)], doing=f"resolving {env.label}", cwd=work)
        pins = parse_pins(out.read_text(encoding="utf-8"), env.label)
    pins = [Pin(pin.name, pin.version, _reasons(pin.why, profile.name)) for pin in pins]
    for pin in pins:
        if pin.name in away:
            raise LockError(f"{env.label}: {pin.name} is excluded but a top requirement asks for it")
    for requirement in profile.requirements:
        if requirement_name(requirement) not in {pin.name for pin in pins}:
            raise LockError(
                f"{env.label}: the resolution lacks {requirement!r}; check its markers and exclusions"
            )
    in_base = {pin.name for pin in base}
    return [pin for pin in pins if pin.name not in in_base]


def _reasons(why: tuple[str, ...], profile: str) -> tuple[str, ...]:
    """Turns uv's `-r NAME.in` into `profile:NAME` or the fixed project's name; drops constraints."""
    reasons = set()
    for item in why:
        if item.startswith("-r "):
            source = item.removeprefix("-r ").removesuffix(".in")
            reasons.add(f"profile:{source}" if source == profile else source)
        elif not item.startswith("-"):
            reasons.add(item)
    return tuple(sorted(reasons))
