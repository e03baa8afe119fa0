"""A GPU that shares the CPU's memory: what vLLM's worker may take of it, and what it gives back.

vLLM takes MemAvailable for free there. That knows no cgroup, nothing of what the driver keeps to itself, and
not whose memory it is: what another process frees between vLLM's two looks counts as room for the KV cache,
and where that is more than vLLM took itself, an assertion ends the start.

While memory is short (`gb10.machine.watch`) the worker lets go of what torch keeps for later, once each time.
"""

import os
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.utils import mem_utils
from vllm.utils.mem_utils import MemorySnapshot

from gb10.machine import memory
from gb10.machine.watch import ENV_NAME, Board

_first: dict[int, tuple[int, int]] = {}
"""By device, at the first look: bytes free, and bytes that torch had there."""


def _free(device: int, cuda: int, torch_memory: int) -> int:
    """Bytes that are free for us: as `memory.unified`, at most those of the first time less what we took."""
    now = memory.unified(memory.available(), cuda).size
    free, had = _first.setdefault(device, (now, torch_memory))
    return max(min(now, free - (torch_memory - had)), 0)


def _give_back_when_short() -> None:
    """Let the worker look at the keeper's board before each step. Once is enough.

    Called where a worker measures memory: nobody else needs to import it.
    """
    from vllm.v1.worker.gpu_worker import Worker

    step = Worker.execute_model
    if ENV_NAME not in os.environ or hasattr(step, "gb10_original"):
        return
    board, told = Board(os.environ[ENV_NAME]), False

    def execute_model(self: Any, scheduler_output: Any) -> Any:
        nonlocal told
        if board.full is not told:
            told = not told
            if told:
                mem_utils.release_device_memory_under_pressure(self.device)
        return step(self, scheduler_output)

    setattr(execute_model, "gb10_original", step)  # noqa: B010 (a function has no such field for mypy)
    Worker.execute_model = execute_model


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
        _give_back_when_short()

    setattr(measure, "gb10_original", original)  # noqa: B010
    MemorySnapshot.measure = measure
