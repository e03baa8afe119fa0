"""NVIDIA's device files: loaded, waited for, and opened before anything is served."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
from conftest import SUPERVISOR

from gb10.errors import UserError


@pytest.fixture(scope="module")
def driver() -> ModuleType:
    sys.path.insert(0, str(SUPERVISOR))
    try:
        import driver
    finally:
        sys.path.remove(str(SUPERVISOR))
    return driver


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with a Spark's GPU on its bus, and no device files yet."""
    device = tmp_path / "sys/bus/pci/devices/000f:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    (tmp_path / "dev").mkdir()
    return tmp_path


def _appear(root: Path, *names: str) -> None:
    for name in names:
        (root / "dev" / name).touch()


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the system's programs; what they are called with is a line of `called`."""
    made = tmp_path / "bin"
    made.mkdir()
    monkeypatch.setenv("PATH", f"{made}:{os.environ['PATH']}")
    return made


def _tool(folder: Path, name: str, status: int) -> None:
    program = folder / name
    program.write_text(
        f'#!/bin/sh\necho "{name} $*" >>"{folder}/called"\necho no such module >&2\nexit {status}\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_the_drivers_own_tool_loads_it(driver: ModuleType, root: Path, tools: Path) -> None:
    _tool(tools, "nvidia-modprobe", 0)
    _tool(tools, "modprobe", 0)
    _appear(root, "nvidiactl", "nvidia0", "nvidia-uvm")
    driver.prepare(0, root)
    assert (tools / "called").read_text() == "nvidia-modprobe -c 0 -u\n"


def test_modprobe_where_that_fails(
    driver: ModuleType, root: Path, tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _tool(tools, "nvidia-modprobe", 1)
    _tool(tools, "modprobe", 0)
    _appear(root, "nvidiactl", "nvidia0", "nvidia-uvm")
    driver.prepare(0, root)
    assert (tools / "called").read_text() == "nvidia-modprobe -c 0 -u\nmodprobe nvidia-uvm\n"
    assert capsys.readouterr().out == "gb10: nvidia-modprobe -c 0 -u failed (status 1): no such module\n"


def test_files_that_come_later_are_waited_for(driver: ModuleType, root: Path, tools: Path) -> None:
    _tool(tools, "nvidia-modprobe", 0)
    timers = [
        threading.Timer(0.5, _appear, (root, "nvidiactl", "nvidia0")),
        threading.Timer(1.0, _appear, (root, "nvidia-uvm")),
    ]
    for timer in timers:
        timer.start()
    driver.prepare(20, root)
    assert not any(timer.is_alive() for timer in timers[:1])


@pytest.mark.parametrize(
    ("there", "said"),
    [((), "there is no /dev/nvidiactl"), (("nvidiactl", "nvidia0"), "there is no /dev/nvidia-uvm")],
)
def test_files_that_do_not_come(
    driver: ModuleType, root: Path, tools: Path, there: tuple[str, ...], said: str
) -> None:
    _tool(tools, "nvidia-modprobe", 0)
    _appear(root, *there)
    with pytest.raises(UserError, match=said):
        driver.prepare(0.3, root)


def test_a_machine_without_a_gpu(driver: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no NVIDIA GPU can be seen"):
        driver.prepare(0, tmp_path)


def test_what_is_closed_to_the_process(driver: ModuleType, root: Path) -> None:
    def why() -> str:
        return str(driver.closed(root))

    assert "nvidiactl is not there yet" in why()
    _appear(root, "nvidiactl")
    assert "nvidia0 is not there yet" in why()
    _appear(root, "nvidia0", "nvidia1")
    assert "nvidia-uvm is not there yet" in why()
    # A folder cannot be opened for writing, by root either: as a device that the unit may not use.
    (root / "dev/nvidia-uvm").mkdir()
    assert "nvidia-uvm cannot be opened (Is a directory)" in why()
    (root / "dev/nvidia-uvm").rmdir()
    _appear(root, "nvidia-uvm")
    assert driver.closed(root) is None


@pytest.mark.parametrize("words", [[], ["x"], ["1", "2"], ["-1"]])
def test_seconds_that_are_none(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(SUPERVISOR), "--prepare-gpu", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gb10: error: --prepare-gpu takes a whole number of seconds\n"
