"""vLLM on a GPU keeps the global scale of each part of a fused layer (gb10.vllm_plugin.scales).

The same weights in BF16, which vLLM serves without any scale, are the reference. ``GB10_DEMO_MODEL`` names
the NVFP4 demo model. Each engine is a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import torch
from reference.engines import serve_tokens
from safetensors.torch import load_file, save_file

from gb10.nvfp4.quantize import dequantize

Tensors = dict[str, torch.Tensor]
PROMPT_LENGTH, PROMPTS = 96, 8
MODEL = os.environ.get("GB10_DEMO_MODEL", "")
pytestmark = pytest.mark.skipif(not MODEL, reason="GB10_DEMO_MODEL is not set")


def _write(folder: Path, tensors: Tensors, *, quantized: bool = True) -> Path:
    folder.mkdir()
    for file in Path(MODEL).iterdir():
        if file.name not in ("model.safetensors", "config.json", "hf_quant_config.json"):
            shutil.copy(file, folder)
    config = json.loads((Path(MODEL) / "config.json").read_text())
    if not quantized:
        del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _in_bf16(tensors: Tensors) -> Tensors:
    """The numbers that the tensors stand for."""
    plain = {}
    for name, tensor in tensors.items():
        if name.endswith((".weight_scale", ".weight_scale_2", ".input_scale")):
            continue
        scale = tensors.get(f"{name}_scale")
        if scale is not None:
            tensor = dequantize(tensor, scale, tensors[f"{name}_scale_2"], torch.bfloat16)
        plain[name] = tensor
    return plain


def _up_projections(tensors: Tensors) -> list[str]:
    return [
        name for name in tensors if name.endswith("up_proj.weight_scale_2") and not name.startswith("mtp")
    ]


@pytest.fixture(scope="module")
def stored() -> Tensors:
    tensors: Tensors = load_file(Path(MODEL) / "model.safetensors")
    return tensors


@pytest.fixture(scope="module")
def halved(stored: Tensors) -> Tensors:
    """The same values: up projections have twice the global scale and half the block scales."""
    changed = dict(stored)
    count = 0
    for name in _up_projections(stored):
        blocks = stored[name.removesuffix("_2")]
        half = (blocks.float() / 2).to(torch.float8_e4m3fn)
        if torch.equal(half.float() * 2, blocks.float()):
            changed[name], changed[name.removesuffix("_2")] = stored[name] * 2, half
            count += 1
    assert count > 10
    return changed


@pytest.fixture(scope="module")
def others(stored: Tensors) -> Tensors:
    """Other values: the up projections are smaller, by a factor that block scales cannot hold."""
    return stored | {name: stored[name] * 0.37 for name in _up_projections(stored)}


Serve = Callable[..., list[float]]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """A function that gives the log-probability of each prompt token, in nats."""
    folder = tmp_path_factory.mktemp("scales")
    generator = torch.Generator().manual_seed(20261126)
    prompts = torch.randint(3, 6000, (PROMPTS, PROMPT_LENGTH), generator=generator).tolist()

    @cache
    def run(model: Path, plugins: str | None) -> list[float]:
        job = {
            "engine": {
                "model": str(model),
                "dtype": "bfloat16",
                "enforce_eager": True,
                "max_model_len": 512,
                "gpu_memory_utilization": 0.3,
                "enable_prefix_caching": False,
                "gdn_prefill_backend": "triton",
                "kernel_config": {"enable_jit_warmup": False},
            },
            "prompts": prompts,
            "max_tokens": 1,
        }
        variables = {} if plugins is None else {"VLLM_PLUGINS": plugins}
        answered = serve_tokens(job, folder / "answer.json", variables)["prompts"]
        return [value for prompt in answered for value in prompt["prompt_logprobs"]]

    def serve_once(
        tensors: Tensors, name: str, *, quantized: bool = True, plugins: str | None = None
    ) -> list[float]:
        model = folder / name
        if not model.exists():
            _write(model, tensors, quantized=quantized)
        return run(model, plugins)

    return serve_once


def _apart(one: list[float], other: list[float]) -> float:
    """Mean absolute difference in nats."""
    assert len(one) == len(other) == PROMPTS * (PROMPT_LENGTH - 1)
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def test_parts_that_differ_by_two(stored: Tensors, halved: Tensors, serve: Serve) -> None:
    """Bit for bit the layers of the unchanged model."""
    assert serve(halved, "halved") == serve(stored, "stored")


def test_parts_with_scales_of_their_own(stored: Tensors, others: Tensors, serve: Serve) -> None:
    usual = _apart(serve(stored, "stored"), serve(_in_bf16(stored), "stored-bf16", quantized=False))
    reference = serve(_in_bf16(others), "others-bf16", quantized=False)
    kept = _apart(serve(others, "others"), reference)
    taken_for_one = _apart(serve(others, "others", plugins=""), reference)
    print(f"nats from BF16: unchanged {usual:.4f}, own scales {kept:.4f}, vLLM alone {taken_for_one:.4f}")
    assert usual < 0.1
    assert kept < 2 * usual
    assert taken_for_one > 5 * kept
