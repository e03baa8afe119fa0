"""A machine in a folder: a Spark's devices, and a libcuda that is compiled here."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from made_up_machine import Machine

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled stand-in."""
    built = tmp_path_factory.mktemp("libcuda") / "libcuda.so.1"
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "no C compiler: the room has one"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", built, HERE / "libcuda.c"], check=True)
    return built


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """One without a GPU."""
    root, home, modules = tmp_path / "root", tmp_path / "home", tmp_path / "modules"
    for folder in (root, home, modules):
        folder.mkdir()
    shutil.copy(HERE / "pynvml_stand_in.py", modules / "pynvml.py")
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "XDG_STATE_HOME", "PORT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    paths = os.pathsep.join(filter(None, (str(modules), os.environ.get("PYTHONPATH"))))
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    monkeypatch.setenv("HOME", str(home))
    made = Machine(root, {**kept, "HOME": str(home), "PYTHONPATH": paths})
    made.memory()
    made.write("proc/cpuinfo", "processor\t: 0\nmodel name\t: Made Up 9000\nflags\t\t: fpu avx2 avx512f\n")
    made.write("proc/self/cgroup", "0::/\n")
    made.write("proc/vmstat", "oom_kill 0\n")
    return made


@pytest.fixture
def spark(machine: Machine, libcuda: Path) -> Machine:
    """One with a GB10."""
    device = "sys/bus/pci/devices/000f:01:00.0"
    machine.write(f"{device}/vendor", "0x10de\n")
    machine.write(f"{device}/class", "0x030200\n")
    machine.write("dev/nvidiactl", "")
    machine.write("dev/nvidia0", "")
    machine.write(
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.173.02  Release Build\n",
    )
    machine.libraries.mkdir(parents=True)
    shutil.copy(libcuda, machine.libraries)
    return machine
