"""The files of the model at the hub, and the environment of a process that fetches it."""

import os

INDEX = "model.safetensors.index.json"
SIZES = {"model-1.safetensors": 700_001, "model-2.safetensors": 300_000}
BESIDE = ("config.json", INDEX, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
LEFT_OUT = ("README.md", "pytorch_model.bin", "extra.safetensors", "original/consolidated.safetensors")


def environment() -> dict[str, str]:
    """For a process that is started: this one's, with its output at once."""
    return os.environ | {"PYTHONUNBUFFERED": "1"}
