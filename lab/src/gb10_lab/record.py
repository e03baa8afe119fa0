"""What a record says of where, when and how it was made: device, driver, clocks, versions, date, command."""

from __future__ import annotations

import datetime
import platform
import shlex
import subprocess
import sys
from typing import Any

import torch

_QUERY = {
    "driver": "driver_version",
    "sm_mhz_at_start": "clocks.sm",
    "memory_mhz_at_start": "clocks.mem",
}
UNKNOWN = "unknown"


def today() -> str:
    """The day and the minute, in UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def command() -> str:
    """The command that repeats this run of the lab."""
    return shlex.join(["python", "-m", "gb10_lab", *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Of torch and Python."""
    return {"torch": torch.__version__, "python": platform.python_version()}


def name(device: torch.device) -> str:
    """The GPU's name, or the kind of CPU and the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def machine(device: torch.device) -> dict[str, Any]:
    """Name and versions; of a GPU also capability, sizes in bytes, driver, CUDA, and clocks in MHz."""
    if device.type != "cuda":
        return {"name": name(device), **versions()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        **_driver_and_clocks(str(properties.uuid)),
        "cuda": torch.version.cuda,
        **versions(),
    }


def _driver_and_clocks(uuid: str) -> dict[str, str]:
    """As nvidia-smi has them; ``unknown`` where it is missing or fails."""
    query = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(_QUERY.values())}"]
    try:
        done = subprocess.run(
            [*query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=20, check=True
        )
        return dict(
            zip(_QUERY, (part.strip() for part in done.stdout.splitlines()[0].split(",")), strict=True)
        )
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return dict.fromkeys(_QUERY, UNKNOWN)
