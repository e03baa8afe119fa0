"""A hub on the loopback with a model of two files of weights, and an empty cache."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import Hub
from hub_model import INDEX, LEFT_OUT, SIZES
from huggingface_hub import constants

PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """The model's folder at the hub."""
    folder = tmp_path / "origin"
    (folder / "original").mkdir(parents=True)
    random.seed(7)
    for name, size in SIZES.items():
        (folder / name).write_bytes(random.randbytes(size))
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    (folder / INDEX).write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md"):
        (folder / name).write_text(f"{name}: {random.random()}")
    for name in LEFT_OUT[1:]:
        (folder / name).write_bytes(random.randbytes(1000))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The cache's folder."""
    return tmp_path / "home" / "hub"


@pytest.fixture
def hub(origin: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, which this process and those that it starts are told to ask."""
    made = Hub(origin)
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    # Read when huggingface_hub is imported: for processes that are started.
    monkeypatch.setenv("HF_HOME", str(cache.parent))
    monkeypatch.setenv("HF_ENDPOINT", made.endpoint)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", made.endpoint)
    template = f"{made.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield made
    made.close()
