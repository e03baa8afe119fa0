"""A lock: a PEP 751 file that names one wheel for each project, and no address."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from packaging.markers import Environment as Markers
from packaging.pylock import PackageWheel, Pylock, PylockSelectError, PylockValidationError
from packaging.tags import Tag, compatible_tags, cpython_tags

HEAD = """\
# Written by `nix run .#lock` out of python/profiles.toml. A wheel is known by name and hash, not by address.
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
    version, interpreter = tuple(map(int, python.split("."))), "cp" + python.replace(".", "")
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(int(glibc.split(".")[1]), 4, -1)]
    legacy = ["manylinux2014", "manylinux2010", "manylinux1"] if machine == "x86_64" else ["manylinux2014"]
    platforms += [f"{platform}_{machine}" for platform in (*legacy, "linux")]
    return [
        *cpython_tags(version, [interpreter], platforms),
        *compatible_tags(version, interpreter, platforms),
    ]


def parse(text: str, where: str, python: str, fitting: list[Tag]) -> list[Wheel]:
    """The wheel of each project that an installer takes, sorted by name.

    uv lists every wheel that fits (one for cp311 beside one for abi3), with addresses; packaging chooses.
    """
    markers = cast(Markers, {"python_full_version": f"{python}.0"})
    wheels = []
    try:
        for package, source in Pylock.from_dict(tomllib.loads(text)).select(
            environment=markers, tags=fitting
        ):
            if not isinstance(source, PackageWheel):
                raise LockError(f"{where}: {package.name} has no wheel; exclude it")
            index = (package.tool or {}).get("gb10", {}).get("index")
            sha256, version = source.hashes["sha256"], str(package.version)
            wheels.append(Wheel(package.name, version, source.filename, sha256, source.size, index))
    except (tomllib.TOMLDecodeError, PylockValidationError, PylockSelectError, KeyError) as error:
        raise LockError(f"{where}: not a lock that can be used: {error}") from None
    return sorted(wheels, key=lambda wheel: wheel.name)


def render(wheels: Iterable[Wheel]) -> str:
    """The text of a lock, one line for each project.

    Nix reads it with builtins.fromTOML, which knows no dates, and uv takes its pins from it. A file without
    address is a `path`: uv wants a host in a `url`.
    """
    lines = []
    for wheel in wheels:
        size = "" if wheel.size is None else f"size = {wheel.size}, "
        file = f'{{ path = "{wheel.file}", {size}hashes = {{ sha256 = "{wheel.sha256}" }} }}'
        tool = "" if wheel.index is None else f', tool = {{ gb10 = {{ index = "{wheel.index}" }} }}'
        lines.append(
            f'  {{ name = "{wheel.name}", version = "{wheel.version}", wheels = [{file}]{tool} }},\n'
        )
    return f"{HEAD}packages = [\n{''.join(lines)}]\n"
