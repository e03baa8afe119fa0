"""The GPU: the driver from its device to CUDA, and what only a running kernel tells."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gb10.doctor import forms
from gb10.doctor.facts import Driver
from gb10.doctor.folders import denied
from gb10.doctor.probe import LACKS, Said
from gb10.errors import UserError
from gb10.machine import driver as libraries
from gb10.machine import nvidia
from gb10.serve import isolation

Answer = TypeVar("Answer")

PATIENCE = 60.0
"""Seconds for a question. A first look at the GPU can take some, importing torch some more."""


@dataclass(frozen=True)
class Silent:
    """A question without an answer: why, and after how long where nothing came at all."""

    why: str
    seconds: float | None = None
    lacks: bool = False
    """Whether it was this environment that lacks what the question needs."""


def ask(question: str, form: type[Answer], environ: Mapping[str, str], limit: float) -> Answer | Silent:
    """Ask `gb10.doctor.probe` in a process with these variables."""
    command = [*isolation.interpreter(), "-m", "gb10.doctor.probe", question]
    given = isolation.environment(environ)
    try:
        process = subprocess.Popen(
            command,
            env=given,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:
        return Silent(f"no process can be started: {error.strerror}")
    try:
        out, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        # One that hangs in the driver ends when that lets it: nobody waits for it.
        process.kill()
        return Silent(f"no answer within {limit:g} s", limit)
    lines = out.splitlines()
    if process.returncode == 0 and lines:
        return forms.loads(form, lines[-1])
    said = [line for line in errors.splitlines() if line.strip()]
    why = said[-1].strip() if said else f"its process ended with status {process.returncode}"
    return Silent(why, lacks=process.returncode == LACKS)


def _started(root: Path) -> bool:
    """Whether the driver has made the device files of a GPU that is there."""
    try:
        nvidia.wait(0, root)
    except UserError:
        return False
    return nvidia.seen(root) is not None


def _module(root: Path) -> str | None:
    try:
        said = (root / "proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    found = re.search(r"Kernel Module .*?(\d+(?:\.\d+)+)", said)
    return found[1] if found else None


def _found(environ: Mapping[str, str], root: Path, private: str) -> tuple[Path | None, str | None]:
    """Folder of the driver's libraries, and why there is none. Links to them go into a folder that goes."""
    try:
        return libraries.folder({**environ, "XDG_CACHE_HOME": private}, root), None
    except UserError as error:
        return None, str(error)


def look(root: Path, environ: Mapping[str, str], limit: float = PATIENCE) -> tuple[Driver, Said]:
    """The driver and its GPUs. Where there is no sign of a GPU, nothing is asked."""
    with tempfile.TemporaryDirectory(prefix="gb10-doctor-") as private:
        folder, missing = _found(environ, root, private)
        said: Said | Silent = Said()
        if folder is not None:
            said = ask("gpus", Said, variables(environ, folder), limit)
        real = folder and (folder / "libcuda.so.1").resolve().parent
    answer = said if isinstance(said, Said) else Said(error=said.why)
    return (
        Driver(
            seen=nvidia.seen(root),
            nodes=_started(root),
            denied=any(map(denied, [root / "dev/nvidiactl", *(root / "dev").glob("nvidia[0-9]*")])),
            hidden=environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"),
            libcuda=str(real) if real else None,
            missing=missing,
            module=_module(root),
            version=answer.version,
            cuda=answer.cuda,
            error=answer.error,
            code=answer.code,
            management=answer.management,
            silent=said.seconds if isinstance(said, Silent) else None,
        ),
        answer,
    )


def variables(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Variables with which a process finds the driver's libraries there, and none that is built against
    another glibc than ours: the same as nix/apps/driver-libraries.nix.
    """
    return {**environ, "LD_LIBRARY_PATH": str(folder)}


def measure(
    question: str, form: type[Answer], root: Path, environ: Mapping[str, str], limit: float = PATIENCE
) -> Answer | Silent:
    """Ask what needs a kernel to run."""
    with tempfile.TemporaryDirectory(prefix="gb10-doctor-") as private:
        folder, missing = _found(environ, root, private)
        if folder is None:
            return Silent(missing or "no libcuda.so.1", lacks=True)
        return ask(question, form, variables(environ, folder), limit)
