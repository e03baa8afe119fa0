"""What NVIDIA's management library (NVML) says of a GPU, by NVIDIA's own binding, nvidia-ml-py."""

import ctypes
import importlib
from dataclasses import dataclass
from typing import Any

REASONS = {
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""nvmlClocksEventReason* that hold clocks down. An idle GPU (0x1) is none of them."""

MODES = {0: "default", 1: "exclusive", 2: "prohibited", 3: "exclusive"}
"""NVML_COMPUTEMODE_*."""

_SM, _CORE = 1, 0
"""NVML_CLOCK_SM, NVML_TEMPERATURE_GPU."""


@dataclass(frozen=True)
class State:
    """Of one GPU, now. Clocks in MHz, power in watt, temperature in degrees Celsius; None: not known."""

    clock: int | None = None
    clock_most: int | None = None
    power: float | None = None
    power_limit: float | None = None
    power_default: float | None = None
    temperature: int | None = None
    held: tuple[str, ...] = ()
    mode: str | None = None
    processes: int | None = None


def binding() -> Any:
    """nvidia-ml-py, started; or a string that says why it is not."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        return "nvidia-ml-py is not in this environment"
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        return str(error)
    return library


def address(device: int) -> bytes | None:
    """PCI address of the ``device``-th GPU that CUDA sees."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    text = ctypes.create_string_buffer(32)
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetPCIBusId(text, len(text), device) != 0:
        return None
    return text.value


def _watt(milliwatt: int | None) -> float | None:
    return None if milliwatt is None else milliwatt / 1000


def state(device: int) -> State | None:
    """The state of the ``device``-th GPU that CUDA sees; None where the library does not know it."""
    library, place = binding(), address(device)
    if isinstance(library, str) or place is None:
        return None

    def ask(function: str, *given: Any) -> Any:
        try:
            return getattr(library, function)(*given)
        except library.NVMLError:
            return None

    handle = ask("nvmlDeviceGetHandleByPciBusId", place)
    if handle is None:
        return None
    reasons = ask("nvmlDeviceGetCurrentClocksEventReasons", handle) or 0
    running = ask("nvmlDeviceGetComputeRunningProcesses", handle)
    return State(
        clock=ask("nvmlDeviceGetClockInfo", handle, _SM),
        clock_most=ask("nvmlDeviceGetMaxClockInfo", handle, _SM),
        power=_watt(ask("nvmlDeviceGetPowerUsage", handle)),
        power_limit=_watt(ask("nvmlDeviceGetPowerManagementLimit", handle)),
        power_default=_watt(ask("nvmlDeviceGetPowerManagementDefaultLimit", handle)),
        temperature=ask("nvmlDeviceGetTemperature", handle, _CORE),
        held=tuple(name for bit, name in REASONS.items() if reasons & bit),
        mode=MODES.get(ask("nvmlDeviceGetComputeMode", handle)),
        processes=None if running is None else len(running),
    )
