"""What CUDA says of memory; libcuda is a stand-in."""

import ctypes
import sys
from pathlib import Path
from typing import Any

import pytest

from gb10.machine import cuda_memory


class Cuda:
    """libcuda with one GPU, of which a call fails where its name is ``broken``."""

    def __init__(self, broken: str = "") -> None:
        self.broken, self.contexts = broken, 0

    def _status(self, name: str) -> int:
        return 100 if name == self.broken else 0

    def cuInit(self, _flags: int) -> int:
        return self._status("cuInit")

    def cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> int:
        if device != 0 or self._status("retain"):
            return 101
        self.contexts += 1
        context._obj.value = 77
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:
        assert context.value == 77
        return self._status("current")

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        free._obj.value, total._obj.value = 7, 128_526_123_008
        return self._status("info")

    def cuDevicePrimaryCtxRelease_v2(self, device: int) -> int:
        assert device == 0
        self.contexts -= 1
        return 0


@pytest.mark.parametrize("broken", ["", "cuInit", "retain", "current", "info"])
def test_free_and_total(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    cuda = Cuda(broken)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: cuda)
    assert cuda_memory.mem_get_info(0) == (None if broken else (7, 128_526_123_008))
    assert cuda_memory.mem_get_info(1) is None
    assert cuda.contexts == 0


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert cuda_memory.mem_get_info(0) is None


@pytest.mark.parametrize(
    ("said", "found"),
    [("print('7 9')", (7, 9)), ("", None), ("print('7')", None), ("print('7 9 x')", None), ("1/0", None)],
)
def test_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, found: tuple[int, int] | None
) -> None:
    program = tmp_path / "program.py"
    program.write_text(said)
    monkeypatch.setattr(cuda_memory, "__file__", str(program))
    assert cuda_memory.ask(0) == found
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    assert cuda_memory.ask(0) is None


def test_the_program_itself() -> None:
    """It needs nothing but the standard library. There is no GPU where this runs, or it says two numbers."""
    found = cuda_memory.ask(0)
    assert found is None or 0 < found[0] <= found[1]
