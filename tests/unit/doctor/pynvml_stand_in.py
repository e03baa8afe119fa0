"""A stand-in for nvidia-ml-py: a folder of the tests has it as pynvml.py."""

import os


class NVMLError(Exception):
    """As NVIDIA's."""


def nvmlInit() -> None:
    if os.environ.get("FAKE_NVML") == "mismatch":
        raise NVMLError("Driver/library version mismatch")


def nvmlSystemGetDriverVersion() -> str:
    return "580.173.02"


def nvmlDeviceGetHandleByPciBusId(address: bytes) -> str:
    assert address == b"000f:01:00.0"
    return "GB10"


def nvmlDeviceGetClockInfo(handle: str, kind: int) -> int:
    assert (handle, kind) == ("GB10", 1)
    return 208


def nvmlDeviceGetMaxClockInfo(handle: str, kind: int) -> int:
    assert (handle, kind) == ("GB10", 1)
    return 3003


def nvmlDeviceGetPowerUsage(handle: str) -> int:
    assert handle == "GB10"
    return 4600


def nvmlDeviceGetPowerManagementLimit(_handle: str) -> int:
    raise NVMLError("Not Supported")


nvmlDeviceGetPowerManagementDefaultLimit = nvmlDeviceGetPowerManagementLimit


def nvmlDeviceGetTemperature(handle: str, kind: int) -> int:
    assert (handle, kind) == ("GB10", 0)
    return 91


def nvmlDeviceGetCurrentClocksEventReasons(_handle: str) -> int:
    return 0x21


def nvmlDeviceGetComputeMode(_handle: str) -> int:
    return 0


def nvmlDeviceGetComputeRunningProcesses(_handle: str) -> list[object]:
    return []
