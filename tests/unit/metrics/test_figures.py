"""What a step reads, as `gb10 serve` works it out of a checkpoint's headers for its metrics."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gb10.checkpoint.hub import locate
from gb10.errors import UserError
from gb10.machine import memory
from gb10.machine.gpu import Gpu
from gb10.serve import command
from gb10.serve.figures import figures, of_device
from gb10.serve.settings import parse
from gb10.units import GIB

pytest.importorskip("vllm.version", reason="vLLM is not installed")

GB10 = Gpu("NVIDIA GB10", (12, 1), 120 << 30, unified=True)
LAYER = "model.layers.0."
TENSORS = {
    "model.embed_tokens.weight": ("BF16", (128, 64)),
    f"{LAYER}self_attn.q_proj.weight": ("BF16", (64, 64)),
    f"{LAYER}mlp.up_proj.weight": ("BF16", (32, 64)),
    "model.norm.weight": ("BF16", (64,)),
    "lm_head.weight": ("BF16", (128, 64)),
}
Plan = Callable[..., command.Plan]


@pytest.fixture
def plan(make_checkpoint: Callable[..., Path], clean_environment: pytest.MonkeyPatch) -> Plan:
    """A function from arguments and GPUs to a plan."""
    clean_environment.setattr(memory, "available", lambda: memory.Available(64 * GIB, "MemAvailable"))

    def build(argv: Sequence[str] = (), gpus: Sequence[Gpu] = (GB10,), **variables: str) -> command.Plan:
        folder = make_checkpoint(tensors=TENSORS)
        settings = parse([str(folder), "--engine", "stock", *argv], {**os.environ, **variables})
        return command.build(settings, locate(str(folder)), gpus, flashinfer=True, demo=False)

    return build


def test_bytes_of_a_token(plan: Plan) -> None:
    found = figures(plan())
    assert found["weights"] == {
        "attention": 64 * 64 * 2,
        "dense MLP": 32 * 64 * 2,
        "norms": 64 * 2,
        "lm_head": 128 * 64 * 2,
        "embedding": 64 * 2,
    }
    # 2 layers, keys and values, 2 heads of 16, 2 bytes (of the config).
    assert (found["kv"], found["state"], found["ranks"]) == (2 * 2 * 2 * 16 * 2, 0, 1)
    assert json.loads(json.dumps(found)) == found


def test_the_users_type_of_the_cache_counts(plan: Plan) -> None:
    assert figures(plan(["--kv-cache-dtype", "fp8"]))["kv"] == 2 * 2 * 2 * 16


def test_what_the_cpu_engine_dequantises_is_not_said(plan: Plan) -> None:
    found = figures(plan(gpus=()))
    assert "weights" not in found and "GB10_CPU_NVFP4_MODE=dequant" in found["missing"]


def test_without_files_of_weights(plan: Plan) -> None:
    made = plan()
    found = figures(replace(made, checkpoint=replace(made.checkpoint, tensors=())))
    assert "no safetensors files" in found["missing"] and "\n" not in found["missing"]


@pytest.mark.parametrize(
    ("given", "name", "rate", "source"),
    [
        ({"ranks": 1}, "NVIDIA GB10", 228e9, "gb10"),
        ({"ranks": 2}, "NVIDIA GB10", 456e9, "gb10"),
        ({"ranks": 2, "rate": 1e11}, "NVIDIA GB10", 2e11, "GB10_READ_BANDWIDTH"),
        ({"rate": 2e10}, None, 2e10, "GB10_READ_BANDWIDTH"),
    ],
)
def test_the_devices_bandwidth(given: dict[str, float], name: str | None, rate: float, source: str) -> None:
    assert of_device(given, name)["device"] == {"name": name or "CPU", "source": source, "rate": rate}


@pytest.mark.parametrize("name", [None, "NVIDIA RTX 9999"])
def test_an_unknown_device_has_no_bandwidth(name: str | None) -> None:
    assert "device" not in of_device({"ranks": 1}, name)


def test_the_users_bandwidth(plan: Plan) -> None:
    assert figures(plan(GB10_READ_BANDWIDTH="231.5"))["rate"] == 231.5e9


@pytest.mark.parametrize("text", ["0", "fast", "-3"])
def test_a_bandwidth_that_is_none(plan: Plan, text: str) -> None:
    with pytest.raises(UserError, match=r"GB10_READ_BANDWIDTH '.*' is not a number above 0 \(GB/s\)"):
        plan(GB10_READ_BANDWIDTH=text)
