"""Pipeline parallel on the CPU: what a stage receives is put where none has been made yet."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.platforms import current_platform

if not current_platform.is_cpu():
    pytest.skip("needs vLLM's CPU platform", allow_module_level=True)

RECEIVE = """
import gc
gc.disable()
import torch
from types import SimpleNamespace
import gb10.vllm_plugin as plugin
from vllm.sequence import IntermediateTensors
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
plugin.register()
made = []

def empty(batch_size, dtype, device):
    made.append((batch_size, dtype, device))
    return IntermediateTensors({"hidden_states": torch.zeros(batch_size, 4, dtype=dtype)})

device = torch.device("cpu")
runner = SimpleNamespace(
    intermediate_tensors=None,
    max_num_tokens=8,
    device=device,
    model=SimpleNamespace(make_empty_intermediate_tensors=empty),
    model_config=SimpleNamespace(dtype=torch.bfloat16),
)
for value in (1.0, 2.0):
    sent = IntermediateTensors({"hidden_states": torch.full((3, 4), value, dtype=torch.bfloat16)})
    found = CPUModelRunner.sync_and_gather_intermediate_tensors(runner, 3, sent, True)
    assert torch.equal(found["hidden_states"], sent["hidden_states"])
assert made == [(8, torch.bfloat16, device)], made
assert runner.intermediate_tensors["hidden_states"][3:].eq(0).all()
"""


def test_a_stage_that_was_not_warmed_up() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RECEIVE],
        capture_output=True,
        text=True,
        timeout=120 * int(os.environ.get("GB10_TEST_SLOWNESS", "1")),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
