"""Find the GPU without importing torch: the driver library first, then nvidia-smi."""

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass

_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18
"""CUdevice_attribute numbers: compute capability major and minor, integrated (unified memory)."""


@dataclass(frozen=True)
class Gpu:
    """One visible GPU. ``memory`` is in bytes, 0 where the driver does not say (unified memory).

    ``unified`` is true where CPU and GPU share one memory, as on GB10; what is free there, the system knows.
    ``free`` is what is free of memory of its own, None where that is not known.
    """

    name: str
    capability: tuple[int, int]
    memory: int
    unified: bool
    free: int | None = None


class _NvmlMemory(ctypes.Structure):
    """nvmlMemory_t of nvml.h, in bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _free_memory(address: bytes) -> int | None:
    """Free memory of the GPU at a PCI address, from the management library: CUDA would take some itself."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    device, found = ctypes.c_void_p(), _NvmlMemory()
    if nvml.nvmlInit_v2() != 0:
        return None
    try:
        if nvml.nvmlDeviceGetHandleByPciBusId_v2(address, ctypes.byref(device)) != 0:
            return None
        return int(found.free) if nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(found)) == 0 else None
    finally:
        nvml.nvmlShutdown()


def _from_driver() -> list[Gpu] | None:
    """GPUs as libcuda lists them (it obeys CUDA_VISIBLE_DEVICES). None without a working driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return None

    def attribute(number: int, device: int) -> int:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    gpus = []
    for device in range(count.value):
        name = ctypes.create_string_buffer(128)
        cuda.cuDeviceGetName(name, len(name), device)
        memory = ctypes.c_size_t()
        cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        capability = (attribute(_MAJOR, device), attribute(_MINOR, device))
        unified, address = bool(attribute(_INTEGRATED, device)), ctypes.create_string_buffer(32)
        known = not unified and cuda.cuDeviceGetPCIBusId(address, len(address), device) == 0
        free = _free_memory(address.value) if known else None
        gpus.append(Gpu(name.value.decode(errors="replace"), capability, memory.value, unified, free))
    return gpus


def parse_nvidia_smi(text: str) -> list[Gpu]:
    """GPUs out of ``nvidia-smi --query-gpu=name,compute_cap,memory.total --format=csv,noheader,nounits``.

    GB10 prints "[N/A]" for its memory, because it has none of its own. Lines of another shape are
    left out.
    """
    gpus = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        major, _, minor = parts[1].partition(".") if len(parts) > 2 else ("", "", "")
        if not (major.isdigit() and minor.isdigit()):
            continue
        mebibytes = int(parts[2]) if parts[2].isdigit() else 0
        gpus.append(Gpu(parts[0], (int(major), int(minor)), mebibytes << 20, mebibytes == 0))
    return gpus


def _from_nvidia_smi() -> list[Gpu]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_nvidia_smi(found.stdout) if found.returncode == 0 else []


def hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides all of them."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def detect_gpus() -> list[Gpu]:
    """All GPUs that a process started now would see; an empty list without one."""
    if hidden():
        return []
    found = _from_driver()
    return _from_nvidia_smi() if found is None else found
