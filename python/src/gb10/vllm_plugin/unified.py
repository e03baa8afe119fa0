"""Free memory of a GPU that shares the CPU's, as vLLM's worker measures it: what it may really take.

vLLM takes MemAvailable on such a GPU. That knows no cgroup, nothing of what the driver keeps to itself, and
not whose memory it is: what another process frees between vLLM's two looks counts as room for the KV cache,
and where that is more than vLLM took itself, an assertion ends the start.
"""

from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.utils.mem_utils import MemorySnapshot

from gb10.machine import memory

_first: dict[int, tuple[int, int]] = {}
"""By device, at the first look: bytes free, and bytes that torch had there."""


def _free(device: int, cuda: int, torch_memory: int) -> int:
    """Bytes that are free for us: as `memory.unified`, at most those of the first time less what we took."""
    now = memory.unified(memory.available(), cuda).size
    free, had = _first.setdefault(device, (now, torch_memory))
    return max(min(now, free - (torch_memory - had)), 0)


def install() -> None:
    """Change ``MemorySnapshot.measure``. Once is enough."""
    original = MemorySnapshot.measure
    if hasattr(original, "gb10_original"):
        return

    def measure(self: Any) -> None:
        original(self)
        device = self.device_
        if not current_platform.is_integrated_gpu(device.index):
            return
        cuda = torch.accelerator.get_memory_info(device)[0]
        self.free_memory = _free(device.index or 0, cuda, self.torch_memory)
        self.cuda_memory = self.total_memory - self.free_memory
        self.non_torch_memory = self.cuda_memory - self.torch_memory

    setattr(measure, "gb10_original", original)  # noqa: B010 (a function has no such field for mypy)
    MemorySnapshot.measure = measure
