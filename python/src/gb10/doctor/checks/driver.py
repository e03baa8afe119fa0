"""The NVIDIA driver, from the device to CUDA."""

from gb10.doctor.facts import Driver, Facts
from gb10.doctor.findings import Finding, stops

LEAST_CUDA = (13, 0)
"""What our wheels were built with; any driver of the same major version or a later one runs it."""

LEAST_DRIVER = "580.65.06"
"""The first driver with CUDA 13.0 (its release notes, table 3)."""

_MISMATCH, _NO_DEVICE, _COMPAT = "mismatch", 100, 803
"""What NVML says where library and kernel module differ; CUDA_ERROR_NO_DEVICE; …SYSTEM_DRIVER_MISMATCH."""

_GIVE = "give the container the GPU: --device nvidia.com/gpu=all (podman), --gpus all (docker)"


def _start(driver: Driver, container: bool) -> list[Finding]:
    """Device files and libraries."""
    if not driver.nodes:
        return [
            stops(
                "driver-not-started",
                f"there is an NVIDIA GPU ({driver.seen}), but no /dev/nvidiactl with a /dev/nvidia0",
                _GIVE if container else "sudo modprobe nvidia && nvidia-smi; else install NVIDIA's driver",
            )
        ]
    if driver.denied:
        return [
            stops(
                "driver-denied",
                "this user may not open /dev/nvidiactl or /dev/nvidia0",
                "sudo usermod -aG video,render $USER, then log in anew",
            )
        ]
    if driver.libcuda is None:
        reason = (driver.missing or "no libcuda.so.1 found").partition(";")[0]
        return [
            stops(
                "libcuda-missing",
                f"the driver runs, but {reason}",
                "give the container the driver's libraries too: NVIDIA_DRIVER_CAPABILITIES=compute,utility"
                if container
                else "sudo apt install --reinstall libnvidia-compute-580, or what your system calls it",
            )
        ]
    return []


def _answer(driver: Driver, gpus: int) -> list[Finding]:
    """What CUDA says."""
    versions = {version for version in (driver.module, driver.version) if version}
    if len(versions) > 1 or _MISMATCH in (driver.management or "").lower():
        seen = (
            f" ({driver.module} is loaded, the libraries are {driver.version})" if len(versions) > 1 else ""
        )
        return [
            stops(
                "driver-mismatch",
                f"the driver's libraries were updated and its kernel module was not{seen}",
                "sudo reboot",
            )
        ]
    if driver.silent is not None:
        return [
            stops(
                "driver-silent",
                f"the driver did not answer within {driver.silent:g} s",
                "sudo reboot; where that hangs, take the power off",
            )
        ]
    if driver.cuda is not None and driver.cuda < LEAST_CUDA:
        have = f"driver {driver.version}" if driver.version else "the driver"
        return [
            stops(
                "driver-old",
                f"{have} has CUDA {driver.cuda[0]}.{driver.cuda[1]}, and 13.0 is needed",
                f"install driver {LEAST_DRIVER} or later (DGX OS: sudo apt update && sudo apt full-upgrade), "
                "then reboot",
            )
        ]
    if driver.code == _COMPAT:
        return [
            stops(
                "cuda-compat",
                f"the libcuda in {driver.libcuda} is not this driver's: {driver.error}",
                "take folders called compat out of LD_LIBRARY_PATH and /etc/ld.so.conf.d",
            )
        ]
    if driver.code == _NO_DEVICE or (driver.error is None and not gpus):
        return [
            stops(
                "gpu-lost",
                "the driver runs and lists no GPU: it has fallen off the bus, or the container has none",
                "sudo journalctl -k | grep -i xid; then take the power off for a minute",
            )
        ]
    if driver.error is not None:
        return [
            stops(
                "cuda-failed",
                f"CUDA does not start: {driver.error}",
                "sudo modprobe -r nvidia_uvm && sudo modprobe nvidia_uvm; else sudo reboot",
            )
        ]
    return []


def check(facts: Facts) -> list[Finding]:
    """The first thing that is wrong: what comes after it follows from it."""
    driver = facts.driver
    if driver.seen is None:
        return []
    if driver.hidden:
        return [
            stops("gpu-hidden", "CUDA_VISIBLE_DEVICES hides every GPU", "unset CUDA_VISIBLE_DEVICES"),
        ]
    return _start(driver, facts.system.container is not None) or _answer(driver, len(facts.gpus))


def says(facts: Facts) -> str:
    """One line."""
    driver = facts.driver
    if driver.seen is None and not facts.gpus:
        return f"no NVIDIA GPU; {driver.missing.partition(';')[0]}" if driver.missing else "no NVIDIA GPU"
    parts = [f"GPU seen by its {driver.seen}" if driver.seen else "GPU listed by CUDA"]
    if driver.version or driver.module:
        parts.append(f"driver {driver.version or driver.module}")
    if driver.cuda:
        parts.append(f"CUDA {driver.cuda[0]}.{driver.cuda[1]}")
    parts.append(f"libcuda in {driver.libcuda}" if driver.libcuda else "no libcuda.so.1")
    return ", ".join(parts)
