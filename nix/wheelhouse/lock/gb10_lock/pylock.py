"""A lock: a PEP 751 file that names one wheel for each project, without any address."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass

from packaging.pylock import PackageWheel, Pylock, PylockSelectError, PylockValidationError
from packaging.tags import Tag, compatible_tags, cpython_tags

# One line for each project. Nix reads it with builtins.fromTOML, which knows no dates. uv takes a file's name as `path` (and
# not as `url`) when it reads the pins again.
_HEAD = """# Written by `nix run .#lock` out of python/profiles.toml. A wheel is known by its file name and hash: pip finds it.
lock-version = "1.0"
created-by = "gb10-lock"
"""


class LockError(Exception):
    """Something the user must know or change: one line, exit code 2, no traceback."""


@dataclass(frozen=True)
class Wheel:
    """A wheel: its size in bytes (None: not known) and the index that has it (None: the package index)."""

    name: str
    version: str
    file: str
    sha256: str
    size: int | None = None
    index: str | None = None


def tags(machine: str, python: str, glibc: str) -> list[Tag]:
    """What CPython `python` ("3.12") runs on `machine` with glibc up to `glibc` ("2.39"), the best first."""
    version = tuple(int(part) for part in python.split("."))
    interpreter = "cp" + python.replace(".", "")
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(int(glibc.split(".")[1]), 4, -1)]
    legacy = ("manylinux2014", "manylinux2010", "manylinux1") if machine == "x86_64" else ("manylinux2014",)
    platforms += [f"{alias}_{machine}" for alias in legacy] + [f"linux_{machine}"]
    return [
        *cpython_tags(version, [interpreter], platforms),
        *compatible_tags(version, interpreter, platforms),
    ]


def parse(text: str, where: str, python: str, allowed: list[Tag]) -> list[Wheel]:
    """The one wheel that is installed of each project of a lock, by name.

    uv lists every wheel that fits, such as one for cp311 beside one for abi3; packaging picks as an installer does.
    """
    try:
        lock = Pylock.from_dict(tomllib.loads(text))
        chosen = list(lock.select(environment={"python_full_version": f"{python}.0"}, tags=allowed))
    except (tomllib.TOMLDecodeError, PylockValidationError, PylockSelectError) as error:
        raise LockError(f"{where}: not a lock that can be used: {error}") from None
    wheels = []
    for package, source in chosen:
        if not isinstance(source, PackageWheel) or "sha256" not in source.hashes:
            raise LockError(f"{where}: {package.name} has no wheel with a SHA-256; exclude or override it")
        index = (package.tool or {}).get("gb10", {}).get("index")
        wheels.append(
            Wheel(
                package.name,
                str(package.version),
                source.filename,
                source.hashes["sha256"],
                source.size,
                index,
            )
        )
    return sorted(wheels, key=lambda wheel: wheel.name)


def render(wheels: Iterable[Wheel]) -> str:
    """The text of a lock."""
    lines = []
    for wheel in sorted(wheels, key=lambda wheel: wheel.name):
        size = "" if wheel.size is None else f"size = {wheel.size}, "
        file = f'{{ path = "{wheel.file}", {size}hashes = {{ sha256 = "{wheel.sha256}" }} }}'
        tool = "" if wheel.index is None else f', tool = {{ gb10 = {{ index = "{wheel.index}" }} }}'
        lines.append(
            f'  {{ name = "{wheel.name}", version = "{wheel.version}", wheels = [{file}]{tool} }},\n'
        )
    return f"{_HEAD}packages = [\n{''.join(lines)}]\n"


def changes(old: list[Wheel], new: list[Wheel]) -> list[str]:
    """What differs, a few words for each project: `numpy 2.1 -> 2.2`, `+ sympy 1.0`, `- mpmath 1.3`, `torch 2.0 (file)`."""
    before, after = ({wheel.name: wheel for wheel in wheels} for wheels in (old, new))
    words = []
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        if was is None or now is None:
            words.append(f"+ {name} {now.version}" if now else f"- {name} {was.version}" if was else "")
        elif was.version != now.version:
            words.append(f"{name} {was.version} -> {now.version}")
        elif was != now:
            words.append(f"{name} {now.version} (file)")
    return words
