"""Fixtures for all tests. gb10 itself comes from PYTHONPATH or an installed package."""

import configparser
import gc
import json
import os
import struct
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

TensorSpec = tuple[str, tuple[int, ...]]
"""dtype word of the safetensors header, and shape."""

_SIZES = {"BF16": 2, "F32": 4, "U8": 1, "F8_E4M3": 1}

TINY_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
}


# The collector walks the growing heap again and again while modules load: 1.5 of 8 seconds of vLLM's.
gc.disable()


def pytest_collection_finish() -> None:
    """One thread: checks run side by side, and threads of torch wait for each other in a loop."""
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


def write_safetensors(path: Path, tensors: dict[str, TensorSpec]) -> None:
    """Write a safetensors file of zeros, by the format's definition (8-byte length, JSON, data)."""
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = _SIZES[dtype]
        for extent in shape:
            size *= extent
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """vLLM sees gb10's plug-in, here and in child processes, also where gb10 is on PYTHONPATH alone."""
    if any(point.name == "gb10" for point in entry_points(group="vllm.general_plugins")):
        yield
        return
    project = tomllib.loads((ROOT / "python" / "pyproject.toml").read_text())["project"]
    site = tmp_path_factory.mktemp("site")
    metadata = site / f"gb10-{project['version']}.dist-info"
    metadata.mkdir()
    named = f"Name: gb10\nVersion: {project['version']}\n"
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\n{named}")
    points = configparser.ConfigParser(delimiters=("=",))
    points.read_dict(project["entry-points"])
    with (metadata / "entry_points.txt").open("w") as file:
        points.write(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
        patch.syspath_prepend(site)
        yield


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a small checkpoint folder and returns it."""

    def make(
        name: str = "model",
        config: dict[str, Any] | None = None,
        tensors: dict[str, TensorSpec] | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**TINY_CONFIG, **(config or {})}))
        (folder / "tokenizer.json").write_text("{}")
        write_safetensors(folder / "model.safetensors", tensors or {"lm_head.weight": ("BF16", (8, 64))})
        return folder

    return make


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No variable that gb10 or vLLM reads is set, and logs go to a temporary folder."""
    for name in list(os.environ):
        seed = (
            "MODEL",
            "HOST",
            "PORT",
            "GPU_MEMORY_UTIL",
            "MAX_MODEL_LEN",
            "MAX_NUM_SEQS",
            "TENSOR_PARALLEL_SIZE",
        )
        if name.startswith(("VLLM_", "GB10_", "HF_", "OMP_", "NVCC_", "LD_PRELOAD")) or name in seed:
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return monkeypatch
