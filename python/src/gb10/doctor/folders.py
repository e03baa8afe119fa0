"""The folders that a server writes to: room, and whether one can write there."""

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

from gb10.doctor.facts import Folder
from gb10.serve.environment import log_folder

CACHE, MODELS, LOGS, TEMPORARY, SHARED = "cache", "models", "logs", "temporary", "shared memory"
"""Roles: what is compiled is kept, what the hub gives, logs of `gb10 serve`, files that live as long as a
server, what vLLM's processes talk through."""


def _places(environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """Roles and folders. HF_HUB_CACHE and HF_HOME count as in huggingface_hub's constants."""
    home = Path(environ.get("HOME") or os.path.expanduser("~"))  # noqa: PTH111 (Path.home() may raise)
    cache = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    hub = Path(environ.get("HF_HOME") or cache / "huggingface").expanduser()
    yield CACHE, cache
    yield MODELS, Path(environ.get("HF_HUB_CACHE") or hub / "hub").expanduser()
    logs = log_folder(environ)
    if logs is not None:
        yield LOGS, logs
    yield TEMPORARY, Path(tempfile.gettempdir())
    yield SHARED, Path("/dev/shm")


def _there(path: Path) -> Path:
    """The folder, or the nearest one above it that is there: a server would make the rest."""
    return next((one for one in (path, *path.parents) if one.is_dir()), Path("/"))


def _refusal(folder: Path) -> str | None:
    """Why no file can be made in a folder; nothing is left there."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            # A file can be made where nothing can be written any more.
            file.write(bytes(4096))
    except OSError as error:
        return error.strerror or str(error)
    return None


def _kind(folder: Path) -> str:
    """Type of the file system: that of the mount point nearest above."""
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    real = folder.resolve()
    return next((mounts[str(one)] for one in (real, *real.parents) if str(one) in mounts), "")


def look(role: str, path: Path) -> Folder:
    """A folder as it is now."""
    there = _there(path)
    why = _refusal(there)
    try:
        found = os.statvfs(there)
    except OSError as error:
        return Folder(role=role, path=str(path), writable=False, why=error.strerror)
    return Folder(
        role=role,
        path=str(path),
        writable=why is None,
        why=why,
        free=found.f_bavail * found.f_frsize,
        total=found.f_blocks * found.f_frsize,
        files=found.f_favail if found.f_files else None,
        exists=there == path,
        noexec=bool(found.f_flag & os.ST_NOEXEC),
        kind=_kind(there),
    )


def folders(environ: Mapping[str, str]) -> tuple[Folder, ...]:
    """All of them."""
    return tuple(look(role, path) for role, path in _places(environ))


def denied(path: Path) -> bool:
    """Whether a device file is there and this user may not open it."""
    try:
        device = stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        return False
    return device and not os.access(path, os.R_OK | os.W_OK)
