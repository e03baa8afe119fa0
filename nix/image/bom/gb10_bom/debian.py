"""The Debian base's packages that are cut out of Debian's files: which file came from which package.

``nix/image/debian-files.json`` has that, as ``python -m gb10_bom debian-files`` finds it in the packages
themselves. There ``@triple@`` stands for the architecture's name in paths, such as x86_64-linux-gnu,
``@dashed@`` for that in names of packages, ``@loader@`` for the file name of the loader.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gb10_bom.errors import BomError

OURS = ""
"""In place of a package's name: what the base itself wrote there, such as links and scripts."""

BYTE_CODE = re.compile(r"(?:^|(?<=/))__pycache__/([^/]+)\.cpython-\d+(?:\.opt-\d)?\.pyc$")

TRIPLES = {"x86_64-linux": "x86_64-linux-gnu", "aarch64-linux": "aarch64-linux-gnu"}

_LIBRARIES = ["lib/@triple@/{}", "usr/lib/@triple@/{}", "lib/{}", "lib64/{}", "usr/lib/{}"]
_RULES: dict[str, list[tuple[str, list[str]]]] = {
    "debian-runtime": [(r"lib/([^/]+)", _LIBRARIES)],
    "rdma-core": [(r"lib/([^/]+)", _LIBRARIES)],
    "bash": [(r"(bin/.*)", ["{}", "usr/{}"])],
    "util-linux": [(r"(bin/.*)", ["{}", "usr/{}"])],
    "python3-3.11": [
        (r"(bin/python3\.11)", ["usr/{}"]),
        (r"(lib/.*)", ["usr/{}"]),
        (r"include/(python3\.11/pyconfig\.h)", ["usr/include/@triple@/{}"]),
        (r"(include/.*)", ["usr/{}"]),
    ],
    "gcc": [
        (
            r"root/usr/bin/([^/]+)",
            ["usr/bin/@triple@-{}-12", "usr/bin/@triple@-{}", "usr/bin/@triple@-{}.bfd"],
        ),
        (r"root/(usr/lib/gcc/.*/(?:as|ld))", []),
        (r"root/(.*)", ["{}"]),
        (r"lib/([^/]+)", _LIBRARIES),
    ],
}
"""For each cut, where a file of it lies in Debian: the first pattern that fits its path, where to look."""


_LOADERS = {"x86_64-linux": "ld-linux-x86-64.so.2", "aarch64-linux": "ld-linux-aarch64.so.1"}


def _words(system: str) -> dict[str, str]:
    triple = TRIPLES[system]
    return {"@loader@": _LOADERS[system], "@triple@": triple, "@dashed@": triple.replace("_", "-")}


def on(text: str, system: str) -> str:
    """A path or a name of debian-files.json on a system."""
    for word, value in _words(system).items():
        text = text.replace(word, value)
    return text


def everywhere(text: str, system: str) -> str:
    """A path or a name of a system as debian-files.json has it."""
    for word, value in _words(system).items():
        text = text.replace(value, word)
    return text


def source_of(path: str) -> str:
    """The module that byte code was compiled from; any other path as it is."""
    return BYTE_CODE.sub(r"\1.py", path)


@dataclass(frozen=True)
class Package:
    """A package of ``nix/debian/packages.lock``."""

    name: str
    version: str
    architecture: str
    sha256: str


def locked(text: str, system: str) -> dict[str, Package]:
    """The packages of a system by name."""
    entries: list[dict[str, Any]] = json.loads(text)["systems"][system]["packages"]
    return {
        entry["name"]: Package(entry["name"], entry["version"], entry["architecture"], entry["sha256"])
        for entry in entries
    }


def files_below(folder: Path) -> Iterator[str]:
    """Files and links below a folder, relative to it."""
    for place, folders, names in os.walk(folder):
        for name in (*names, *(name for name in folders if Path(place, name).is_symlink())):
            yield str(Path(place, name).relative_to(folder))


def listed(packages: Iterable[Path]) -> dict[str, str]:
    """Path in the file system -> package, of Debian's package files. Folders are left out."""
    owners: dict[str, str] = {}
    for package in packages:
        try:
            name = _dpkg("--field", package, "Package").strip()
            lines = _dpkg("--contents", package).splitlines()
        except (OSError, subprocess.CalledProcessError) as error:
            raise BomError(f"{package} cannot be read as a package of Debian ({error})") from None
        for line in lines:
            # -rw-r--r-- root/root 2308 2023-01-01 00:00 ./etc/x -> y
            mode, *_, path = line.split(" -> ")[0].split(maxsplit=5)
            if not mode.startswith("d"):
                owners[path.removeprefix("./")] = name
    return owners


def _dpkg(what: str, package: Path, *more: str) -> str:
    command = ["dpkg-deb", what, str(package), *more]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def origins(cut: str, files: Iterable[str], owners: dict[str, str], system: str) -> dict[str, str]:
    """File of a cut -> the package that it came from, or OURS."""
    found = {}
    for file in files:
        source = source_of(file)
        found[file] = OURS
        for pattern, places in _RULES[cut]:
            if match := re.fullmatch(pattern, source):
                named = [on(place, system).format(match[1]) for place in places]
                found[file] = next((owners[path] for path in named if path in owners), OURS)
                break
    return found


def condensed(found: dict[str, str], system: str) -> dict[str, list[str]]:
    """Package -> its files, or the folders that hold files of it alone. Byte code goes with its source."""
    owners_of: dict[PurePosixPath, set[str]] = defaultdict(set)
    for file, owner in found.items():
        for folder in PurePosixPath(file).parents:
            owners_of[folder].add(owner)
    places: dict[str, set[str]] = defaultdict(set)
    for file, owner in found.items():
        if source_of(file) != file and found.get(source_of(file)) == owner:
            continue
        # The highest folder that is one package's.
        folders = [*reversed(PurePosixPath(file).parents)][1:]
        whole = next((folder for folder in folders if len(owners_of[folder]) == 1), None)
        places[owner].add(file if whole is None else f"{whole}/")
    return {
        everywhere(owner, system): sorted(everywhere(path, system) for path in paths)
        for owner, paths in sorted(places.items())
    }


def table(packages: Iterable[Path], cuts: Iterable[Path], system: str) -> dict[str, dict[str, list[str]]]:
    """What debian-files.json holds, from package files and the store paths of the cuts."""
    owners = listed(packages)
    found = {}
    for cut in cuts:
        name = cut.name.partition("-")[2]
        if name not in _RULES:
            raise BomError(f"{cut} is no package that the base cuts; there are: {', '.join(_RULES)}")
        origin = origins(name, files_below(cut), owners, system)
        # Links into another store path are the base's.
        origin |= {
            file: OURS
            for file in origin
            if (cut / file).is_symlink() and (cut / file).readlink().is_absolute()
        }
        found[name] = condensed(origin, system)
    return dict(sorted(found.items()))
