"""A CUDA-graph estimate must never be negative: the worker subtracts it from the memory for the KV cache.

On unified memory (GB10) "free GPU memory" also grows when the host frees pages, in the middle of a capture.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vllm is not installed", allow_module_level=True)

from vllm.config import CUDAGraphMode
from vllm.v1.worker import gpu_model_runner

GIB, MIB = 1 << 30, 1 << 20


def estimate(free_memory: list[int], graphs: dict[CUDAGraphMode, int]) -> int:
    """Return vLLM's estimate in bytes when ``free_memory`` is what the device reports, reading by reading."""
    readings: Iterator[int] = iter(free_memory)
    descriptions = [
        (mode, [SimpleNamespace(num_tokens=8) for _ in range(count)]) for mode, count in graphs.items()
    ]
    runner: Any = mock.MagicMock()
    runner.cudagraph_dispatcher.get_capture_descs.return_value = descriptions
    runner.cudagraph_dispatcher.cudagraph_keys = {}
    runner._create_encoder_cudagraph_manager.return_value = None
    runner.max_model_len, runner.max_num_tokens = 128, 64

    def nothing(*_args: object, **_kwargs: object) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()

    platform = mock.MagicMock()
    with (
        mock.patch.multiple(
            gpu_model_runner,
            set_current_vllm_config=nothing,
            graph_capture=nothing,
            set_cudagraph_capturing_enabled=mock.MagicMock(),
            current_platform=platform,
        ),
        mock.patch.object(gpu_model_runner.torch, "accelerator") as accelerator,
    ):
        accelerator.get_memory_info.side_effect = lambda: (next(readings), 128 * GIB)
        result: int = gpu_model_runner.GPUModelRunner.profile_cudagraph_memory(runner)
    assert next(readings, None) is None, "not every reading was used"
    return result


def test_memory_that_the_host_gives_back_is_no_credit() -> None:
    # The first capture "frees" 20.5 GiB, as reported from a GB10; the second one costs 100 MiB.
    readings = [60 * GIB, 80 * GIB + GIB // 2, 80 * GIB, 80 * GIB - 100 * MIB]
    assert estimate(readings, {CUDAGraphMode.FULL: 3}) == 2 * 100 * MIB


def test_one_mode_does_not_pay_for_the_other() -> None:
    readings = [60 * GIB, 61 * GIB, 61 * GIB, 62 * GIB, 62 * GIB, 62 * GIB - 300 * MIB]
    graphs = {CUDAGraphMode.PIECEWISE: 5, CUDAGraphMode.FULL: 1}
    assert estimate(readings, graphs) == 300 * MIB + 4 * MIB


def test_discrete_memory_is_counted_as_before() -> None:
    readings = [60 * GIB, 59 * GIB, 59 * GIB, 59 * GIB - 50 * MIB]
    assert estimate(readings, {CUDAGraphMode.FULL: 11}) == GIB + 10 * 50 * MIB


@pytest.mark.parametrize("noise", [1, GIB, 36 * GIB])
def test_the_estimate_is_never_negative(noise: int) -> None:
    assert estimate([60 * GIB, 60 * GIB + noise], {CUDAGraphMode.FULL: 1}) == 0
