"""FP8 weights on the CPU: the parts of a fused layer get one scale."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.platforms import current_platform

if not current_platform.is_cpu():
    pytest.skip("needs vLLM's CPU platform", allow_module_level=True)

from gb10.vllm_plugin.cpu.fp8 import quantize

REQUANTIZE = """
import gc
gc.disable()
import torch
import gb10.vllm_plugin as plugin
from vllm.model_executor.layers.quantization.utils.w8a8_utils import requantize_with_max_scale
plugin.register()
values = torch.tensor([[1.0, -2.0, 448.0], [0.5, 3.0, -6.0]])
scales = torch.tensor([0.25, 0.5])
weight = values.to(torch.float8_e4m3fn)
scale, made = requantize_with_max_scale(weight, scales, [1, 1])
assert scale == 0.5
assert torch.equal(made.float() * scale, values * scales[:, None]), made
"""


def test_saturates_and_rounds_to_even() -> None:
    x = torch.tensor([[0.0, 1.0, 17.0, 1e6, -1e6, 0.3]])
    found = quantize(x, torch.tensor(1.0)).float()
    assert found.tolist() == [[0.0, 1.0, 16.0, 448.0, -448.0, 0.3125]]
    out = torch.empty(1, 6, dtype=torch.float8_e4m3fn)
    assert quantize(x, torch.tensor([2.0]), out) is out
    assert out.float()[0, 1] == 0.5


def test_parts_of_a_fused_layer_get_one_scale() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REQUANTIZE],
        capture_output=True,
        text=True,
        timeout=120 * int(os.environ.get("GB10_TEST_SLOWNESS", "1")),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
