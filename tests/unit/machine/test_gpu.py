"""GPUs as the driver's libraries tell them; the libraries are stand-ins."""

import ctypes
from typing import Any

import pytest

from gb10.machine import gpu
from gb10.machine.gpu import Gpu

ATTRIBUTES = {75: (9, 12), 76: (0, 1), 18: (0, 1)}
"""Capability and "integrated" of an H200 and of a GB10."""
NAMES = (b"NVIDIA H200", b"NVIDIA GB10")
ADDRESSES = (b"0000:1b:00.0", b"000f:01:00.0")
MEMORY = (150_754_820_096, 128_526_123_008)


class Cuda:
    """libcuda with those two."""

    def cuInit(self, _flags: int) -> int:
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(NAMES)
        return 0

    def cuDeviceGetAttribute(self, value: Any, number: int, device: int) -> int:
        value._obj.value = ATTRIBUTES[number][device]
        return 0

    def cuDeviceGetName(self, name: Any, _size: int, device: int) -> int:
        name.value = NAMES[device]
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: int) -> int:
        memory._obj.value = MEMORY[device]
        return 0

    def cuDeviceGetPCIBusId(self, address: Any, _size: int, device: int) -> int:
        address.value = ADDRESSES[device]
        return 0


class Nvml:
    """libnvidia-ml that knows the first one, where ``status`` is 0."""

    def __init__(self, status: int = 0) -> None:
        self.status, self.open = status, 0

    def nvmlInit_v2(self) -> int:
        self.open += 1
        return 0

    def nvmlShutdown(self) -> int:
        self.open -= 1
        return 0

    def nvmlDeviceGetHandleByPciBusId_v2(self, address: bytes, device: Any) -> int:
        assert address == ADDRESSES[0]
        device._obj.value = 77
        return self.status

    def nvmlDeviceGetMemoryInfo(self, device: Any, found: Any) -> int:
        assert device.value == 77
        found._obj.total, found._obj.free, found._obj.used = 10, 7, 3
        return 0


@pytest.mark.parametrize(("status", "free"), [(0, 7), (6, None)])
def test_gpus_of_the_driver(monkeypatch: pytest.MonkeyPatch, status: int, free: int | None) -> None:
    nvml = Nvml(status)
    libraries: dict[str, Any] = {"libcuda.so.1": Cuda(), "libnvidia-ml.so.1": nvml}
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libraries[name])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu.detect_gpus() == [
        Gpu("NVIDIA H200", (9, 0), MEMORY[0], False, free),
        Gpu("NVIDIA GB10", (12, 1), MEMORY[1], True, None),
    ]
    assert nvml.open == 0


def test_without_the_management_library_nothing_is_known_to_be_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Any:
        if name != "libcuda.so.1":
            raise OSError(name)
        return Cuda()

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [found.free for found in gpu.detect_gpus()] == [None, None]
