"""Free memory on a GPU that shares the CPU's: vLLM's own profiling, with a made-up CUDA and machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from fresh import python

MACHINE = """
from types import SimpleNamespace
from vllm.utils import mem_utils
from vllm.v1.worker.utils import request_memory
from gb10.machine import memory
from gb10.vllm_plugin import patches
import psutil

GIB = 1 << 30
TOTAL = 128_526_123_008
# GiB: MemAvailable, MemFree, what CUDA calls free, the cgroup's room, what torch holds.
now = SimpleNamespace(available=110, free=20, cuda=20, group=None, torch=0)

def available():
    rooms = [(now.available, "MemAvailable")] + ([(now.group, "memory.max")] if now.group else [])
    size, name = min(rooms)
    return memory.Available(size * GIB, name)

memory.available = available
memory._meminfo = lambda _proc, name: {b"MemAvailable": now.available, b"MemFree": now.free}[name] * GIB
psutil.virtual_memory = lambda: SimpleNamespace(available=now.available * GIB, total=TOTAL)
for name, value in {
    "memory_stats": lambda _device: {
        "allocated_bytes.all.peak": now.torch * GIB, "allocated_bytes.all.current": now.torch * GIB
    },
    "memory_reserved": lambda _device: now.torch * GIB,
    "get_memory_info": lambda _device: (now.cuda * GIB, TOTAL),
    "empty_cache": lambda: None,
    "reset_peak_memory_stats": lambda _device: None,
}.items():
    setattr(torch.accelerator, name, value)
mem_utils.current_platform.is_integrated_gpu = lambda _index: INTEGRATED
if OURS:
    patches.apply("load")
    patches.apply("load")

def look():
    return mem_utils.MemorySnapshot(device="cuda:0")

def fits(share):
    try:
        request_memory(look(), SimpleNamespace(gpu_memory_utilization=share))
    except ValueError as error:
        return str(error)
    return None
"""


def machine(code: str, *, ours: bool = True, integrated: bool = True) -> None:
    status, said = python(f"OURS, INTEGRATED = {ours}, {integrated}\n{MACHINE}\n{code}")
    assert status == 0, said


def test_page_cache_is_free_and_what_the_driver_keeps_is_not() -> None:
    machine("""
assert look().free_memory == 110 * GIB
assert fits(0.9) is None
now.cuda = 2
snapshot = look()
assert snapshot.free_memory == 92 * GIB
assert snapshot.cuda_memory == TOTAL - 92 * GIB == snapshot.non_torch_memory
assert fits(0.75) is None
assert "Free memory on device cuda:0 (92.0/119.7 GiB)" in fits(0.9)
""")


def test_a_cgroup_counts() -> None:
    machine("""
now.group = 50
assert look().free_memory == 50 * GIB
assert "(50.0/119.7 GiB)" in fits(0.5)
""")


PROFILE = """
before = look()
# 60 GiB are loaded while another process ends and gives {freed} back.
now.torch, now.available, now.free, now.cuda = 60, 110 - 60 + {freed}, 20, 20
with mem_utils.memory_profiling(before, weights_memory=60 * GIB) as result:
    pass
"""


@pytest.mark.parametrize("freed", [0, 30, 70])
def test_what_others_free_meanwhile_is_no_room_for_the_cache(freed: int) -> None:
    machine(f"""
{PROFILE.format(freed=freed)}
assert result.total_consumed == result.non_kv_cache_memory == 60 * GIB, result
assert before.free_memory >= result.after_profile.free_memory
""")


def test_what_others_take_meanwhile_is_gone() -> None:
    machine(f"""
{PROFILE.format(freed=-10)}
assert result.non_kv_cache_memory == 70 * GIB, result
""")


def test_vllm_alone_counts_it() -> None:
    """The control."""
    machine(
        f"""
now.group = 50
now.cuda = 2
assert look().free_memory == 110 * GIB
{PROFILE.format(freed=70)}
assert result.total_consumed == -10 * GIB
assert before.free_memory < result.after_profile.free_memory, "gpu_worker.py asserts that this is not so"
""",
        ours=False,
    )


def test_the_worker_gives_back_what_torch_keeps(tmp_path: Path) -> None:
    """Once each time that memory gets short, before a step."""
    machine(f"""
import os
from gb10.machine.watch import ENV_NAME, Board
from vllm.v1.worker.gpu_worker import Worker
os.environ[ENV_NAME] = {str(tmp_path / "memory")!r}
board = Board(os.environ[ENV_NAME], write=True)
did = []
Worker.execute_model = lambda self, scheduler_output: did.append(scheduler_output)
mem_utils.release_device_memory_under_pressure = lambda device: did.append(device)
look()
look()
worker = object.__new__(Worker)
worker.device = "cuda:0"
for step, words in enumerate((None, "short", "short", None, "short")):
    board.write(words)
    worker.execute_model(step)
assert did == [0, "cuda:0", 1, 2, 3, "cuda:0", 4], did
""")


def test_without_a_keeper_nobody_looks() -> None:
    machine("""
from vllm.v1.worker.gpu_worker import Worker
before = Worker.execute_model
look()
assert Worker.execute_model is before
""")


def test_other_gpus_are_left_alone() -> None:
    machine("assert look().free_memory == 20 * GIB", integrated=False)
