"""What this GPU's memory gives: a reading kernel and torch's copy, and what an empty graph node costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gb10_lab.kernel_bench.figures import Spread, gbps
from gb10_lab.kernel_bench.timing import Version, in_turns, record, record_idle

BLOCKS_PER_SM = (2, 4, 8, 16)


@dataclass(frozen=True)
class Bandwidth:
    """Measured ceilings. ``read_blocks_per_sm`` is the grid that read fastest."""

    read_gbps: float
    read_us: Spread
    read_blocks_per_sm: int
    copy_gbps: float
    copy_us: Spread
    bytes_read: int
    bytes_copied: int
    launch_us: float
    clear_gbps: float


def measure(device: torch.device, size: int, budget_s: float) -> Bandwidth:
    """Read ``size`` bytes and copy half as many (so that both move ``size``), in turns.

    Raises RuntimeError when the reading kernel did not read every byte.
    """
    x = torch.randint(-(2**62), 2**62, (size // 8,), dtype=torch.int64, device=device).view(torch.uint8)
    y = torch.empty_like(x[: size // 2])
    sms = torch.cuda.get_device_properties(device).multi_processor_count
    outs = [torch.empty(sms * blocks, dtype=torch.int32, device=device) for blocks in BLOCKS_PER_SM]
    read = torch.ops.gb10.bandwidth_read.default

    wanted = _xor(x.view(torch.int32))
    for out in outs:
        out.fill_(-1)
        read(x, out)
        if _xor(out) != wanted:
            raise RuntimeError("bandwidth_read did not read every byte: its exclusive or is wrong")

    def reader(out: torch.Tensor) -> Version:
        def run(_: int) -> torch.Tensor:
            read(x, out)
            return out

        return Version("read", run, 1)

    versions = [reader(out) for out in outs]
    versions.append(Version("copy", lambda _: y.copy_(x[: size // 2]), 1))
    versions.append(Version("clear", lambda _: y.zero_(), 1))
    *reads, copy, clear = in_turns([record(version, size) for version in versions], budget_s)
    idle = in_turns([record_idle()], budget_s / 4)[0]
    best = min(range(len(reads)), key=lambda i: reads[i].median)
    return Bandwidth(
        read_gbps=gbps(size, reads[best].median),
        read_us=reads[best],
        read_blocks_per_sm=BLOCKS_PER_SM[best],
        copy_gbps=gbps(size, copy.median),
        copy_us=copy,
        bytes_read=size,
        bytes_copied=size // 2,
        launch_us=idle.median,
        clear_gbps=gbps(size // 2, clear.median),
    )


def _xor(words: torch.Tensor) -> int:
    """The exclusive or of all int32 words."""
    while len(words) > 1:
        half = len(words) // 2
        folded = words[:half] ^ words[half : 2 * half]
        words = torch.cat((folded, words[2 * half :])) if len(words) % 2 else folded
    return int(words[0])
