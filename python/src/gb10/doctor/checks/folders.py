"""Folders: whether they can be written, and whether there is room."""

import errno
import os
from collections.abc import Iterator

from gb10.doctor.facts import Facts, Folder
from gb10.doctor.findings import Finding, stops, warning
from gb10.doctor.folders import CACHE, LOGS, MODELS, SHARED, TEMPORARY
from gb10.units import GIB, MIB, text_size

SHARED_LEAST = 160 * MIB
"""What vLLM's processes talk through (as nix/image/entry.py measured it)."""

IMAGE_CACHE = "/cache"
"""The image's one volume, without which it serves nothing."""

_FULL = GIB
_MODEL = 64 * GIB
"""Room for a model of 80 billion parameters in NVFP4, 47 GiB, and what is compiled."""

_NAMES = {
    MODELS: "folder of models",
    CACHE: "cache",
    LOGS: "folder of logs",
    TEMPORARY: "temporary folder",
    SHARED: "shared memory",
}
_VARIABLES = {MODELS: "HF_HOME", CACHE: "XDG_CACHE_HOME", LOGS: "XDG_STATE_HOME", TEMPORARY: "TMPDIR"}


def _mend(folder: Folder) -> str:
    """For a folder that cannot be written."""
    variable = _VARIABLES.get(folder.role)
    other = f", or export {variable}=FOLDER" if variable else ""
    if folder.path == IMAGE_CACHE:
        return f"mount a volume there: -v gb10-cache:{IMAGE_CACHE}"
    if folder.why == os.strerror(errno.EROFS):
        return f"mount a volume there{other}" if variable else "mount a tmpfs there"
    if folder.why == os.strerror(errno.ENOSPC):
        return f"free some space there{other}"
    if variable and not folder.exists:
        return f"export {variable}=FOLDER, one of your own"
    return f"sudo chown -R $USER {folder.path}"


def _unwritable(folder: Folder) -> Finding:
    # A server starts without: what is in the folder can be read, the rest goes elsewhere. Not so the image's.
    needed = folder.role in (TEMPORARY, SHARED) or folder.path == IMAGE_CACHE
    return (stops if needed else warning)(
        f"{folder.role.replace(' ', '-')}-unwritable",
        f"the {_NAMES[folder.role]} {folder.path} cannot be written: {folder.why}",
        _mend(folder),
    )


def _disks(folders: tuple[Folder, ...]) -> Iterator[Folder]:
    """Caches, models and logs, of each disk one: what is wrong with it is wrong once."""
    seen = set()
    for folder in folders:
        disk = (folder.total, folder.free >> 20, folder.writable, folder.why)
        if folder.role not in (TEMPORARY, SHARED) and disk not in seen:
            seen.add(disk)
            yield folder


def _disk(folder: Folder) -> Iterator[Finding]:
    if not folder.writable:
        yield _unwritable(folder)
    elif folder.free < _FULL or folder.files == 0:
        left = f"{text_size(folder.free)} is left" if folder.files != 0 else "no file can be made any more"
        yield warning(
            f"{folder.role}-full",
            f"the {_NAMES[folder.role]} {folder.path} is full: {left}",
            f"free some space there, or export {_VARIABLES[folder.role]}=FOLDER",
        )


def _folder(folder: Folder, facts: Facts) -> Iterator[Finding]:
    name = _NAMES[folder.role]
    if folder.role in (TEMPORARY, SHARED) and not folder.writable:
        yield _unwritable(folder)
    elif folder.role == SHARED and folder.total < SHARED_LEAST:
        yield stops(
            "shared-memory-small",
            f"{folder.path} has {text_size(folder.total)}, and vLLM needs {text_size(SHARED_LEAST)}",
            "start the container with --shm-size=1g (Kubernetes: an emptyDir with medium: Memory there)",
        )
    if folder.role == MODELS and facts.gpu_machine and folder.writable and _FULL <= folder.free < _MODEL:
        yield warning(
            "models-room",
            f"the {name} {folder.path} has {text_size(folder.free)} left, and a model takes up to "
            f"{text_size(_MODEL)}",
            "hf cache ls; hf cache rm NAME; or export HF_HOME=FOLDER",
        )
    if folder.noexec and folder.role in (CACHE, TEMPORARY):
        yield stops(
            f"{folder.role}-noexec",
            f"the {name} {folder.path} is mounted noexec, and compiled code is loaded from it",
            f"start the container with --tmpfs {folder.path}:exec, or a volume there"
            if facts.system.container
            else f"sudo mount -o remount,exec {folder.path}, or export {_VARIABLES[folder.role]}=FOLDER",
        )


def check(facts: Facts) -> list[Finding]:
    """Each folder."""
    found = [one for folder in _disks(facts.folders) for one in _disk(folder)]
    return found + [one for folder in facts.folders for one in _folder(folder, facts)]


def says(facts: Facts) -> str:
    """One line."""
    return ", ".join(
        f"{_NAMES[folder.role]} {text_size(folder.total if folder.role == SHARED else folder.free)}"
        f"{'' if folder.role == SHARED else ' free'}"
        for folder in facts.folders
    )
