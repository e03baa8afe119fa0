"""A folder with the NVIDIA driver's libraries and nothing else, for programs with a glibc of their own.

Their loader does not look in the system's folders, and must not: beside libcuda lie the system's own glibc
and libstdc++. So links to the driver's libraries go into a private folder, unless they have one of their own.

``python -m gb10.machine.driver`` prints its path. It runs no other program.
"""

import contextlib
import hashlib
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from gb10.errors import UserError

_ROOT = Path("/")
_LIBRARY = "libcuda.so.1"
_PATTERNS = ("libcuda.so*", "libcudadebugger.so*", "libnvidia-*.so*")

_ALONE = ("run/opengl-driver/lib", "usr/lib/wsl/lib", "usr/local/nvidia/lib64", "usr/local/nvidia/lib")
"""Folders of the driver's alone: NixOS, WSL, and what some container platforms mount."""

_PRIVATE = 0o700


def _mixed(root: Path) -> list[Path]:
    """Folders where the driver's libraries lie among the system's: Debian, Ubuntu, DGX OS; others.

    NVIDIA's container tools put them in one of these too.
    """
    multiarch = f"usr/lib/{os.uname().machine}-linux-gnu"
    return [root / folder for folder in (multiarch, "usr/lib64", "usr/lib")]


def _table(folder: Path) -> dict[str, Path]:
    """The driver's libraries in ``folder``, without links that lead nowhere."""
    found = sorted(path for pattern in _PATTERNS for path in folder.glob(pattern))
    return {path.name: path for path in found if path.exists()}


def _identity(table: Mapping[str, Path]) -> str:
    """Another one for each version of the driver: names of libraries carry that."""
    lines = [f"{path}\n" for path in table.values()]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def _trusted(folder: Path) -> bool:
    """Whether nobody but root and this user can put another folder in the place of this one.

    Root is also who has "/": in a user namespace the machine's root is nobody.
    """
    owners = (0, os.geteuid(), _ROOT.stat().st_uid)
    for part in (folder, *folder.parents):
        found = part.lstat()
        others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners or others_write:
            return False
    return True


def _own(base: Path, below: str) -> Path | None:
    """The folder ``below`` a base, made if need be; None where it cannot be this user's alone.

    The base may be a link. What comes below may not: somebody could lead us into a folder of this user's.
    """
    folder = Path(os.path.realpath(base), below)
    if ":" in str(folder):
        # A list of folders could not have it.
        return None
    try:
        there = next(part for part in folder.parents if os.path.lexists(part))
        if not _trusted(there):
            return None
        folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        found = folder.lstat()
        if not (_trusted(folder.parent) and stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()):
            return None
        if stat.S_IMODE(found.st_mode) != _PRIVATE:
            folder.chmod(_PRIVATE)
    except OSError:
        return None
    return folder


def _places(environ: Mapping[str, str], name: str) -> Iterator[Path]:
    """Private folders to hold the links, the best first.

    First one that neither a logout nor a cleaning of /tmp takes from a server that runs. In a public folder
    the private one lies on top, where its owner is looked at.
    """
    home = environ.get("HOME", "")
    # A system's user may have a home that is not there, and is not to be.
    cache = f"{home}/.cache" if home and Path(home).is_dir() else ""
    temporary = tempfile.gettempdir()
    for base, below in (
        (environ.get("XDG_CACHE_HOME") or cache, f"gb10/driver/{name}"),
        (environ.get("XDG_RUNTIME_DIR", ""), f"gb10-driver-{name}"),
        (temporary, f"gb10-driver-{os.geteuid()}-{name}"),
    ):
        if base.startswith("/") and (made := _own(Path(base), below)) is not None:
            yield made
    # Somebody has taken that name, or the folder is one that others may change.
    yield Path(tempfile.mkdtemp(prefix="gb10-driver-", dir=temporary))


def _fill(folder: Path, table: Mapping[str, Path]) -> None:
    """Make ``folder`` hold the links of ``table`` alone. Others may do the same at the same time.

    Raises OSError where it holds anything but links: nothing of the user's is removed.
    """
    entries = list(folder.iterdir())
    if not all(entry.is_symlink() or not os.path.lexists(entry) for entry in entries):
        raise FileExistsError(folder)
    for entry in entries:
        if entry.name not in table and not entry.name.startswith("."):
            entry.unlink(missing_ok=True)
    for name, target in table.items():
        new = folder / f".{name}.{secrets.token_hex(8)}"
        new.symlink_to(target)
        new.replace(folder / name)


def _links(table: Mapping[str, Path], environ: Mapping[str, str]) -> Path:
    with contextlib.suppress(OSError):
        for folder in _places(environ, _identity(table)):
            with contextlib.suppress(OSError):
                _fill(folder, table)
                return folder
    raise UserError(
        "no folder can be made for links to the driver's libraries; set XDG_CACHE_HOME or TMPDIR to one of "
        "your own"
    )


def folder(environ: Mapping[str, str], root: Path = _ROOT) -> Path:
    """The folder of the driver's libraries. Raises UserError where there are none.

    After the places where drivers are come the folders of LD_LIBRARY_PATH, for one that is elsewhere.
    """
    for alone in (root / name for name in _ALONE):
        if (alone / _LIBRARY).exists():
            return alone
    named = [Path(part) for part in environ.get("LD_LIBRARY_PATH", "").split(":") if part.startswith("/")]
    broken = ""
    for mixed in (*_mixed(root), *named):
        library = mixed / _LIBRARY
        if library.exists():
            return _links(_table(mixed), environ)
        if library.is_symlink():
            broken = f" ({library} is a link to nothing)"
    raise UserError(
        f"no {_LIBRARY} found{broken}; install NVIDIA's driver, give the container the GPU, or run `serve`, "
        "which is for the CPU"
    )


def main() -> int:
    """Print the folder; the exit status."""
    os.umask(0o077)
    try:
        print(folder(os.environ))
    except UserError as error:
        print(f"gb10: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
