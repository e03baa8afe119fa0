"""NVIDIA's device files: loaded and waited for as root, before a unit's list of devices is made; then opened.

systemd looks up the names of that list once, when it starts the unit: a module that is loaded later has no
number yet, and its devices stay closed to the service until it is started anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from gb10.errors import UserError
from gb10.machine import nvidia

UNIFIED = "nvidia-uvm"
"""The module that CUDA would load by itself, with nvidia-modprobe, if the service were allowed to."""

_POLL = 0.25
_PATIENCE = 30.0


def prepare(seconds: float, root: Path = Path("/")) -> None:
    """Load the driver's modules, and wait ``seconds`` for its device files. For root.

    Raises UserError where there is no GPU, or where the files do not come.
    """
    if nvidia.seen(root) is None:
        raise UserError("no NVIDIA GPU can be seen on this machine; for the CPU there is install-service-cpu")
    end = time.monotonic() + seconds
    _load()
    nvidia.wait(seconds, root)
    while not (root / "dev" / UNIFIED).exists():
        if time.monotonic() >= end:
            raise UserError(
                f"after {seconds:g} s there is no /dev/{UNIFIED}; install nvidia-modprobe, or "
                f"load the module (modprobe {UNIFIED})"
            )
        time.sleep(_POLL)


def _load() -> None:
    """Ask for the modules and their device files; whether they came is seen later."""
    for command in (["nvidia-modprobe", "-c", "0", "-u"], ["modprobe", UNIFIED]):
        if shutil.which(command[0]) is None:
            continue
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"gb10: {' '.join(command)}: {error}", flush=True)
            continue
        if done.returncode == 0:
            return
        said = " ".join((done.stderr or done.stdout).split())
        print(f"gb10: {' '.join(command)} failed (status {done.returncode}): {said}", flush=True)


def closed(root: Path = Path("/")) -> str | None:
    """Why CUDA would not get its devices in this process; None where it would."""
    dev = root / "dev"
    gpus = sorted(path for path in dev.glob("nvidia[0-9]*"))
    for path in (dev / "nvidiactl", *(gpus or [dev / "nvidia0"]), dev / UNIFIED):
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except FileNotFoundError:
            return f"{path} is not there yet: the driver has not started"
        except OSError as error:
            return (
                f"{path} cannot be opened ({error.strerror}): the service started before the driver, or "
                "may not use the GPU"
            )
    return None
