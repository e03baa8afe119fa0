"""Command line: `python -m gb10_lab kernel-prefill`. The kernels of many tokens: experts, NVFP4 linears.

Each time is the median of graph replays of a few layers of their own weights, so that L2 is cold for weights.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable

import torch

from gb10.vllm_plugin.cuda import dequant
from gb10_lab.kernel_bench import adapters, data
from gb10_lab.kernel_bench.shapes import Moe

LAYERS = (
    Moe("qwen3-next", "qwen3-next", 512, 10, 2048, 512, shared=512),
    Moe("qwen3.5", "35B-A3B", 256, 8, 2048, 512, shared=512),
    Moe("qwen3", "30B-A3B", 128, 8, 2048, 768),
)
TOKENS = (4, 8, 12, 16, 17, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
LINEAR = ((2048, 4096), (12288, 2048))
COPIES, REPLAYS = 3, 15


def run() -> int:
    """Print microseconds a layer, and 1e12 operations or bytes of weights a second."""
    device, _ = adapters.ready()
    torch.manual_seed(7)
    print(torch.cuda.get_device_name(device))
    for layer in LAYERS:
        copies = [data.moe(layer, device) for _ in range(COPIES)]
        for tokens in TOKENS:
            x = data.activations(tokens, layer.hidden, device)
            routed = [data.routing(layer, tokens, False, device) for _ in copies]
            for name in ("moe_decode", "moe_grouped")[tokens > 16 :]:
                version = getattr(adapters, name)(x, copies, routed)
                us = _time(version.run)
                pairs = tokens * (layer.topk * layer.intermediate + layer.shared)
                rate = 6 * layer.hidden * pairs / us * 1e-6
                print(f"{name:<12} {layer.label:<34} M {tokens:5} {us:9.1f} us {rate:7.1f} T/s", flush=True)
        del copies
    for rows, columns in LINEAR:
        weights = [data.nvfp4(rows, columns, device) for _ in range(COPIES)]
        for tokens in (64, 128, 512, 2048, 8192):
            x = data.activations(tokens, columns, device)
            us = _time(functools.partial(_linear, x, weights))
            rate = 2 * rows * columns * tokens / us * 1e-6
            print(
                f"dequantised  {rows} x {columns:<28} M {tokens:5} {us:9.1f} us {rate:7.1f} T/s", flush=True
            )
    return 0


def _linear(x: torch.Tensor, weights: list[data.Nvfp4], i: int) -> torch.Tensor:
    return dequant.product(x, *weights[i])


def _time(call: Callable[[int], torch.Tensor]) -> float:
    """Microseconds of one call."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(COPIES):
            call(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(COPIES):
            call(i)
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / COPIES)
    return float(statistics.median(times))
