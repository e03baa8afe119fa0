"""Memory that is free (proc and cgroup files written here) and memory that a model needs."""

import os
from pathlib import Path
from typing import Any

import pytest

from gb10.machine import memory
from gb10.machine.memory import (
    GIB,
    MIB,
    CacheShape,
    Tensor,
    available,
    cache_shape,
    kv_cache_bytes,
    weight_bytes,
)


class Machine:
    """A /proc and a /sys made of files."""

    def __init__(self, folder: Path, free: int = 64 * GIB) -> None:
        self.proc, self.sys = folder / "proc", folder / "sys"
        (self.proc / "self").mkdir(parents=True)
        self.proc.joinpath("meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {free // 1024} kB\n")

    def group(self, membership: str, folder: str, files: dict[str, str]) -> None:
        self.proc.joinpath("self/cgroup").write_text(membership)
        place = self.sys / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (place / name).write_text(text)

    def available(self) -> memory.Available:
        return available(self.proc, self.sys)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_cgroups_it_is_mem_available(machine: Machine) -> None:
    assert machine.available() == memory.Available(64 * GIB, "MemAvailable")


def test_cgroup_v2_limit_counts_and_page_cache_is_free(machine: Machine) -> None:
    machine.group("0::/box\n", "fs/cgroup", {"cgroup.controllers": "memory"})
    files = {
        "memory.max": str(8 * GIB),
        "memory.current": str(6 * GIB),
        "memory.stat": f"anon 1\ninactive_file {GIB}\n",
    }
    machine.group("0::/box\n", "fs/cgroup/box", files)
    found = machine.available()
    assert found.size == 3 * GIB
    assert found.limit.endswith("fs/cgroup/box/memory.max")


def test_cgroup_v2_parent_limit_counts(machine: Machine) -> None:
    machine.group("0::/a/b\n", "fs/cgroup", {"cgroup.controllers": "memory"})
    machine.group("0::/a/b\n", "fs/cgroup/a", {"memory.max": str(4 * GIB), "memory.current": "0"})
    machine.group("0::/a/b\n", "fs/cgroup/a/b", {"memory.max": "max", "memory.current": "0"})
    assert machine.available().size == 4 * GIB


def test_cgroup_v2_in_a_container_whose_path_is_the_hosts(machine: Machine) -> None:
    files = {"cgroup.controllers": "memory", "memory.max": str(2 * GIB), "memory.current": str(GIB)}
    machine.group("0::/host/only/path\n", "fs/cgroup", files)
    assert machine.available().size == GIB


def test_cgroup_v1_limit_counts(machine: Machine) -> None:
    files = {
        "memory.limit_in_bytes": str(5 * GIB),
        "memory.usage_in_bytes": str(2 * GIB),
        "memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\n",
    }
    machine.group("4:cpu:/x\n3:memory,hugetlb:/docker/1\n", "fs/cgroup/memory/docker/1", files)
    assert machine.available().size == 4 * GIB


def test_cgroup_v1_without_limit_does_not_count(machine: Machine) -> None:
    files = {"memory.limit_in_bytes": "9223372036854771712", "memory.usage_in_bytes": "1"}
    machine.group("3:memory:/\n", "fs/cgroup/memory", files)
    assert machine.available().limit == "MemAvailable"


def test_usage_above_the_limit_is_no_free_memory(machine: Machine) -> None:
    files = {"cgroup.controllers": "", "memory.max": str(GIB), "memory.current": str(2 * GIB)}
    machine.group("0::/\n", "fs/cgroup", files)
    assert machine.available().size == 0


def test_this_machine_has_memory() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available().size <= total


LINEAR = (
    Tensor("q.weight", "U8", (64, 32), 2048),
    Tensor("q.weight_scale", "F8_E4M3", (64, 4), 256),
    Tensor("q.weight_scale_2", "F32", (), 4),
    Tensor("norm.weight", "BF16", (64,), 128),
)


@pytest.mark.parametrize(
    ("mode", "size"), [("dequant", 64 * 64 * 2 + 4 + 128), ("packed", 2436), ("emulate", 2436), (None, 2436)]
)
def test_weight_bytes_by_mode(mode: str | None, size: int) -> None:
    assert weight_bytes(LINEAR, mode) == size


def test_u8_without_block_scales_is_not_nvfp4() -> None:
    assert weight_bytes([Tensor("table", "U8", (100,), 100)], "dequant") == 100


PLAIN = {
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_size": 512,
}
HYBRID = {
    **PLAIN,
    "full_attention_interval": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
}


@pytest.mark.parametrize(
    ("config", "element", "shape"),
    [
        (PLAIN, 2, CacheShape(2 * 4 * 2 * 64 * 2, 0)),
        (PLAIN, 1, CacheShape(2 * 4 * 2 * 64, 0)),
        ({"text_config": PLAIN}, 2, CacheShape(2 * 4 * 2 * 64 * 2, 0)),
        ({k: v for k, v in PLAIN.items() if k != "head_dim"}, 2, CacheShape(2 * 4 * 2 * 64 * 2, 0)),
        (HYBRID, 2, CacheShape(2 * 2 * 64 * 2, 3 * ((2 * 2 * 64 + 4 * 64) * 3 * 2 + 4 * 64 * 64 * 4))),
        (
            {**PLAIN, "layer_types": ["linear_attention", "full_attention"] * 2},
            2,
            CacheShape(2 * 2 * 2 * 64 * 2, 0),
        ),
        ({}, 2, CacheShape(0, 0)),
    ],
)
def test_cache_shape(config: dict[str, Any], element: int, shape: CacheShape) -> None:
    assert cache_shape(config, element) == shape


def test_kv_cache_is_bounded() -> None:
    shape = CacheShape(1024, 0)
    assert kv_cache_bytes(shape, 16, 1, 64 * GIB) == memory.KV_CACHE_FLOOR
    assert kv_cache_bytes(shape, 4096, 32, 64 * GIB) == 160 * MIB
    assert kv_cache_bytes(shape, 1 << 20, 32, 64 * GIB) == memory.KV_CACHE_CEILING
    assert kv_cache_bytes(shape, 1 << 20, 2, 5 * GIB) == 1280 * MIB  # what one sequence needs
    assert kv_cache_bytes(CacheShape(1000, 0), 300_000, 1, 64 * GIB) % MIB == 0


@pytest.mark.parametrize(("size", "text"), [(1610612736, "1.5 GiB"), (203 * MIB, "203 MiB"), (0, "0 MiB")])
def test_text_size(size: int, text: str) -> None:
    assert memory.text_size(size) == text
