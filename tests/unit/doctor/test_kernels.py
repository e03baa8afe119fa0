"""What runs on a GPU, with stand-ins for it; the driver's own compiler reads the PTX."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from gb10 import libraries
from gb10.doctor import instruction, nvml, reading
from gb10.errors import UserError
from gb10.kernels import bandwidth
from gb10.machine import flashinfer

PTXAS = os.environ.get("GB10_PTXAS")


@pytest.mark.skipif(not PTXAS, reason="GB10_PTXAS is not set: the flake's check has it")
@pytest.mark.parametrize("target", instruction.FAMILIES.values())
def test_the_instruction_assembles(tmp_path: Path, target: str) -> None:
    assert PTXAS
    source, cubin = tmp_path / "probe.ptx", tmp_path / "probe.cubin"
    source.write_text(instruction.PTX.replace("TARGET", target))
    subprocess.run([PTXAS, f"-arch={target}", source, "-o", cubin], check=True)
    assert cubin.stat().st_size > 500


@pytest.mark.skipif(not PTXAS, reason="GB10_PTXAS is not set: the flake's check has it")
def test_without_its_suffix_it_does_not(tmp_path: Path) -> None:
    assert PTXAS
    source = tmp_path / "probe.ptx"
    source.write_text(instruction.PTX.replace("TARGET", "sm_121"))
    done = subprocess.run([PTXAS, "-arch=sm_121", source, "-o", tmp_path / "x"], capture_output=True)
    assert done.returncode != 0 and b"e2m1x2" in done.stderr


def test_inputs_have_every_tie_and_its_neighbours() -> None:
    given = instruction.inputs()
    assert given.shape == ((1 << 15) + 21, 2) and given.dtype == torch.float32
    numbers = set(given.flatten().tolist())
    for tie in (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0):
        for side in (0.0, float("inf")):
            near = torch.nextafter(torch.tensor(tie), torch.tensor(side)).item()
            assert {tie, -tie, near, -near} <= numbers
    assert given.isnan().any() and given.isinf().any()


def test_software_puts_the_even_number_low() -> None:
    pairs = torch.tensor([[0.5, 6.0], [-0.0, float("nan")]])
    assert instruction.software(pairs).tolist() == [0x71, 0x78]


class Driver(ModuleType):
    """cuda.bindings.driver of a GPU that computes ``result``, or whose ``broken`` call fails."""

    def __init__(self, broken: str = "", wrong: int = 0) -> None:
        super().__init__("driver")
        self.broken, self.wrong, self.launched = broken, wrong, 0

    def _status(self, name: str) -> Any:
        code = 218 if name == self.broken else 0
        return Code(code)

    def cuModuleLoadData(self, image: bytes) -> Any:
        assert b".target sm_120f" in image and image.endswith(b"\0")
        return self._status("load"), "module"

    def cuModuleGetFunction(self, module: str, name: bytes) -> Any:
        assert (module, name) == ("module", b"gb10_e2m1")
        return self._status("function"), "kernel"

    def cuLaunchKernel(self, kernel: str, *rest: Any) -> Any:
        grid, block, (values, _kinds) = rest[:3], rest[3:6], rest[8]
        source, out, pairs = values
        assert kernel == "kernel" and grid[1:] == (1, 1) and block == (256, 1, 1)
        assert (grid[0] - 1) * 256 < pairs <= grid[0] * 256
        numbers = torch.frombuffer((ctypes.c_float * (2 * pairs)).from_address(source), dtype=torch.float32)
        codes = instruction.software(numbers.view(-1, 2))
        codes[: self.wrong] ^= 1
        ctypes.memmove(out, codes.data_ptr(), pairs)
        self.launched += 1
        return (self._status("launch"),)


class Code(int):
    """A CUresult."""

    name = "CUDA_ERROR_INVALID_PTX"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch whose GPU is the processor."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))

    def made(driver: Driver, targets: set[str] | None) -> Any:
        package, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
        monkeypatch.setitem(sys.modules, "cuda", package)
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)

        def library() -> Path:
            if targets is None:
                raise UserError("GB10_KERNELS is not set")
            return Path("/nowhere")

        monkeypatch.setattr(libraries, "kernels", library)
        monkeypatch.setattr(flashinfer, "targets", lambda _path: frozenset(targets or ()))
        fits = {("sm120f", (12, 1)), ("sm121a", (12, 1)), ("sm121", (12, 1)), ("sm90a", (9, 0))}
        monkeypatch.setattr(flashinfer, "runs_on", lambda name, one: (name, one) in fits)
        return instruction.look

    return made


@pytest.mark.parametrize(
    ("targets", "live"),
    [
        ({"sm120f", "sm90a", "compute121"}, "hardware"),
        ({"sm121a"}, "hardware"),
        ({"sm121", "compute121"}, "software"),
        ({"sm90a"}, "software"),
        (None, None),
    ],
)
def test_which_route_is_live(gpu: Any, targets: set[str] | None, live: str | None) -> None:
    driver = Driver()
    found = gpu(driver, targets)((12, 1))
    assert found.live == live and found.wrong == 0
    assert found.checked == (1 << 15) + 21 and driver.launched == 1


def test_an_instruction_that_computes_otherwise(gpu: Any) -> None:
    found = gpu(Driver(wrong=3), {"sm120f"})((12, 1))
    assert found.wrong == 3


@pytest.mark.parametrize("broken", ["load", "function", "launch"])
def test_an_instruction_that_is_refused(gpu: Any, broken: str) -> None:
    found = gpu(Driver(broken), {"sm120f"})((12, 1))
    assert found.checked == 0
    assert found.refused is not None and "CUDA_ERROR_INVALID_PTX" in found.refused


def test_a_gpu_without_it_is_asked_nothing(gpu: Any) -> None:
    driver = Driver()
    found = gpu(driver, {"sm90a"})((9, 0))
    assert (found.checked, found.refused, found.live, driver.launched) == (0, None, "software", 0)


def test_the_read_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 GiB/s by the events, and the clock that was seen meanwhile."""
    sizes: list[int] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        record = synchronize = lambda self: None

        def elapsed_time(self, _done: "Event") -> float:
            return sizes[0] / (2 << 30) * 1e3

    def full(shape: tuple[int], value: int, **_options: Any) -> torch.Tensor:
        sizes.append(shape[0])
        return torch.zeros(16, dtype=torch.uint8)

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (8 << 30, 8 << 30))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "full", full)
    monkeypatch.setattr(bandwidth, "read", lambda x, out=None: x)
    monkeypatch.setattr(nvml, "state", lambda _device: nvml.State(clock=513, held=("power brake",)))
    found = reading.gpu(0.05)
    assert found.size == sizes[0] <= 1 << 30
    assert found.rate == pytest.approx(2 << 30)
    assert (found.clock, found.held) == (513, ("power brake",))


def test_without_the_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.binding() == "nvidia-ml-py is not in this environment"
    assert nvml.state(0) is None
