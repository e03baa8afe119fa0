"""NCCL finds RDMA in the store, and libibverbs the provider of NVIDIA's network adapters."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import Run, closure

PYTHON = os.environ["GB10_PYTHON"]
RDMA = os.environ["GB10_RDMA"]

# The devices as libibverbs finds them; the provider's library as NCCL opens it; where the code came from.
PROGRAM = """
import ctypes
verbs = ctypes.CDLL("libibverbs.so.1")
verbs.ibv_get_device_list.restype = ctypes.POINTER(ctypes.c_void_p)
verbs.ibv_get_device_name.argtypes, verbs.ibv_get_device_name.restype = [ctypes.c_void_p], ctypes.c_char_p
count = ctypes.c_int()
devices = verbs.ibv_get_device_list(ctypes.byref(count))
print([verbs.ibv_get_device_name(devices[index]).decode() for index in range(count.value)])
ctypes.CDLL("libmlx5.so.1")
with open("/proc/self/maps") as maps:
    print(sorted({line.split()[-1] for line in maps if ".so" in line}))
"""


def plant_adapter(folder: Path) -> None:
    """A ConnectX-7 in "tmp/sys" and "dev" of an empty root, as the kernel shows it."""
    verbs, adapter = folder / "tmp/sys/class/infiniband_verbs", folder / "tmp/sys/class/infiniband/mlx5_0"
    for place, text in {
        verbs / "abi_version": "6",
        verbs / "uverbs0/ibdev": "mlx5_0",
        verbs / "uverbs0/abi_version": "1",
        verbs / "uverbs0/dev": "231:192",
        adapter / "node_type": "1: CA",
        adapter / "device/modalias": "pci:v000015B3d00001021sv000015B3sd00000023bc02sc07i00",
        folder / "dev/infiniband/uverbs0": "",
    }.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("providers", "devices"),
    [({"RDMAV_DRIVERS": f"{RDMA}/lib/libibverbs/libmlx5"}, "['mlx5_0']"), ({}, "[]")],
)
def test_an_adapter_is_found(
    run_in_empty_root: Run, tmp_path: Path, providers: dict[str, str], devices: str
) -> None:
    plant_adapter(tmp_path / "empty")
    # As nix/apps/rdma.nix sets them; libibverbs reads the last one.
    variables = {"LD_LIBRARY_PATH": f"{RDMA}/lib", **providers, "SYSFS_PATH": "/tmp/sys"}
    ran = run_in_empty_root(closure("python", "rdma"), [PYTHON, "-c", PROGRAM], variables)
    assert ran.status == 0, ran.errors
    found, mapped = ran.output.splitlines()
    assert found == devices
    assert f"'{RDMA}/lib/libmlx5.so.1" in mapped
    assert all(file.strip("'").startswith("/nix/store/") for file in mapped.strip("[]").split(", "))
