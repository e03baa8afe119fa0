"""Whether the machine has an NVIDIA GPU, which it may have long before its driver has started."""

import sys
import time
from pathlib import Path

from gb10.errors import UserError

_ROOT = Path("/")
_NVIDIA, _DISPLAY = "0x10de", "0x03"
"""The vendor's number, and how the class of a display controller (VGA, 3D) begins: a Spark's bridges are
NVIDIA's as well."""

_POLL = 0.25


def _nodes(root: Path) -> bool:
    """Whether the device files are there through which CUDA reaches a GPU: the driver's, Tegra's or WSL's."""
    dev = root / "dev"
    return (
        ((dev / "nvidiactl").exists() and any(dev.glob("nvidia[0-9]*")))
        or (dev / "nvmap").exists()
        or ((dev / "dxg").exists() and (root / "usr/lib/wsl/lib/libcuda.so.1").exists())
    )


def _on_pci(root: Path) -> str | None:
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        try:
            vendor, kind = (device / "vendor").read_text(), (device / "class").read_text()
        except OSError:
            continue
        if vendor.strip() == _NVIDIA and kind.startswith(_DISPLAY):
            return f"PCI device {device.name}"
    return None


def _tegra(root: Path) -> bool:
    try:
        return b"nvidia,tegra" in (root / "sys/firmware/devicetree/base/compatible").read_bytes()
    except OSError:
        return False


def seen(root: Path = _ROOT) -> str | None:
    """What shows that there is a GPU, None where nothing does.

    On a Spark its PCI device does, from the first moment on (000f:01:00.0). The other signs are for a
    container that does not see the bus, and for machines whose GPU is on none.
    """
    if (device := _on_pci(root)) is not None:
        return device
    if _tegra(root):
        return "device tree"
    if any((root / "proc/driver/nvidia/gpus").glob("*")):
        return "/proc/driver/nvidia"
    return "device files" if _nodes(root) else None


def wait(seconds: float, root: Path = _ROOT) -> None:
    """Where there is a GPU whose driver has not made its device files yet, wait for them, with a line.

    Raises UserError when they are not there after ``seconds``. Returns at once where there is no GPU.
    """
    if _nodes(root) or (shown := seen(root)) is None:
        return
    has = f"this machine has an NVIDIA GPU ({shown})"
    if seconds > 0:
        print(
            f"gb10: {has}; waiting up to {seconds:g} s for /dev/nvidiactl and /dev/nvidia0",
            file=sys.stderr,
            flush=True,
        )
    end = time.monotonic() + seconds
    while not _nodes(root):
        left = end - time.monotonic()
        if left <= 0:
            raise UserError(
                f"{has}, but after {seconds:g} s there is no /dev/nvidiactl with a /dev/nvidia0; check the "
                "driver with nvidia-smi, or give the container the GPU; GB10_DEVICE_WAIT=SECONDS waits longer"
            )
        time.sleep(min(_POLL, left))
