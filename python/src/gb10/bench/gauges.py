"""Power, clock and temperature of the GPU while a repeat runs, from NVML as vLLM has it.

Each value is asked for by itself: a GB10 says some and not others.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

from gb10.bench.results import Power
from gb10.errors import UserError
from gb10.machine import driver

_INTERVAL = 0.1
"""Seconds between two questions."""


def _load_library() -> None:
    """The driver's library, whose name then finds it: a glibc of our own does not look where it lies."""
    with contextlib.suppress(UserError, OSError):
        ctypes.CDLL(str(driver.folder(os.environ) / "libnvidia-ml.so.1"))


class Gauges:
    """The GPUs that NVML lists; `about` names them. Without NVML there are none, and nothing is said."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._devices: list[Any] = []
        try:
            from vllm.third_party import pynvml

            _load_library()
            pynvml.nvmlInit()
        except Exception:
            # No vLLM, no driver, or a driver that does not answer.
            return
        self._nvml = pynvml
        self._devices = [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]

    def _said(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except self._nvml.NVMLError:
            return None

    def about(self) -> dict[str, Any] | None:
        """Names and driver; None without a GPU."""
        if not self._devices:
            return None
        nvml = self._nvml
        return {
            "gpus": [self._said(partial(nvml.nvmlDeviceGetName, one)) for one in self._devices],
            "driver": self._said(nvml.nvmlSystemGetDriverVersion),
            "cuda": self._said(nvml.nvmlSystemGetCudaDriverVersion_v2),
        }

    def read(self) -> tuple[float | None, float | None, float | None]:
        """Watts of all GPUs together, the lowest clock of the SMs in MHz, the highest temperature."""
        nvml = self._nvml
        watts = self._each(lambda one: nvml.nvmlDeviceGetPowerUsage(one) / 1e3)
        clocks = self._each(lambda one: nvml.nvmlDeviceGetClockInfo(one, nvml.NVML_CLOCK_SM))
        degrees = self._each(lambda one: nvml.nvmlDeviceGetTemperature(one, nvml.NVML_TEMPERATURE_GPU))
        return (
            sum(watts) if watts else None,
            min(clocks) if clocks else None,
            max(degrees) if degrees else None,
        )

    def _each(self, question: Callable[[Any], float]) -> list[float]:
        found = (self._said(partial(question, one)) for one in self._devices)
        return [float(value) for value in found if value is not None]

    def watch(self) -> "Watch | None":
        """What to put around a repeat; None without a GPU."""
        return Watch(self) if self._devices else None


class Watch:
    """Reads the gauges in a thread as long as its ``with`` block runs."""

    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges
        self._found: list[tuple[float | None, float | None, float | None]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while True:
            self._found.append(self._gauges.read())
            if self._end.wait(_INTERVAL):
                return

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def power(self) -> Power:
        """What was read."""
        watts, clocks, degrees = (
            [value for value in column if value is not None] for column in zip(*self._found, strict=True)
        )
        return Power(
            samples=len(self._found),
            watts=fmean(watts) if watts else None,
            watts_peak=max(watts, default=None),
            clock=fmean(clocks) if clocks else None,
            clock_least=min(clocks, default=None),
            temperature=max(degrees, default=None),
        )
