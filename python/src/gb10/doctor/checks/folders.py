"""Folders: whether they can be written, and whether there is room."""

from collections.abc import Iterator

from gb10.doctor.facts import Facts, Folder
from gb10.doctor.findings import Finding, stops, warning
from gb10.doctor.folders import CACHE, LOGS, MODELS, SHARED, TEMPORARY
from gb10.units import GIB, MIB, text_size

SHARED_LEAST = 160 * MIB
"""What vLLM's processes talk through (as nix/image/entry.py measured it)."""

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


def _unwritable(folder: Folder) -> Finding:
    name, variable = _NAMES[folder.role], _VARIABLES.get(folder.role)
    what = f"the {name} {folder.path} cannot be written: {folder.why}"
    if folder.why == "Read-only file system":
        mend = f"mount a volume there, or export {variable}=FOLDER" if variable else "mount a tmpfs there"
    elif folder.why == "No space left on device":
        mend = f"free some space there, or export {variable}=FOLDER" if variable else "free some space there"
    else:
        mend = f"sudo chown -R $USER {folder.path}"
    # A server starts without: what is in the folder can be read, the rest goes elsewhere.
    make = stops if folder.role in (TEMPORARY, SHARED) else warning
    return make(f"{folder.role.replace(' ', '-')}-unwritable", what, mend)


def _room(folder: Folder, *, gpu: bool) -> Iterator[Finding]:
    name = _NAMES[folder.role]
    if folder.role == SHARED:
        if folder.total < SHARED_LEAST:
            yield stops(
                "shared-memory-small",
                f"{folder.path} has {text_size(folder.total)}, and vLLM's processes need "
                f"{text_size(SHARED_LEAST)}",
                "start the container with --shm-size=1g (Kubernetes: an emptyDir with medium: Memory there)",
            )
        return
    if folder.role == TEMPORARY:
        return
    if folder.free < _FULL or folder.files == 0:
        left = f"{text_size(folder.free)} is left" if folder.files != 0 else "no file can be made any more"
        yield warning(
            f"{folder.role}-full",
            f"the {name} {folder.path} is full: {left}",
            f"free some space there, or export {_VARIABLES[folder.role]}=FOLDER",
        )
    elif folder.role == MODELS and gpu and folder.free < _MODEL:
        yield warning(
            "models-room",
            f"the {name} {folder.path} has {text_size(folder.free)} left, and a model takes up to "
            f"{text_size(_MODEL)}",
            "hf cache ls; hf cache rm NAME; or export HF_HOME=FOLDER",
        )


def _same(folders: tuple[Folder, ...]) -> Iterator[Folder]:
    """Folders, the caches of one disk once: what is wrong with one is wrong with the others."""
    seen = set()
    for folder in folders:
        apart = folder.role in (TEMPORARY, SHARED)
        disk = (folder.role if apart else "", folder.total, folder.free >> 20, folder.writable, folder.why)
        if disk not in seen:
            seen.add(disk)
            yield folder


def check(facts: Facts) -> list[Finding]:
    """Each folder."""
    found: list[Finding] = []
    for folder in _same(facts.folders):
        if not folder.writable:
            found.append(_unwritable(folder))
        else:
            found += _room(folder, gpu=facts.gpu_machine)
    for folder in facts.folders:
        if folder.noexec and folder.role in (CACHE, TEMPORARY):
            found.append(
                stops(
                    f"{folder.role}-noexec",
                    f"the {_NAMES[folder.role]} {folder.path} is mounted noexec, and compiled code is loaded "
                    "from it",
                    f"sudo mount -o remount,exec {folder.path}, or export {_VARIABLES[folder.role]}=FOLDER",
                )
            )
    return found


def says(facts: Facts) -> str:
    """One line."""
    return ", ".join(
        f"{_NAMES[folder.role]} {text_size(folder.total if folder.role == SHARED else folder.free)}"
        f"{'' if folder.role == SHARED else ' free'}"
        for folder in facts.folders
    )
