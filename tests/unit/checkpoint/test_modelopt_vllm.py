"""What we write in ModelOpt's form, against vLLM's own reader."""

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from gb10.checkpoint import modelopt

pytest.importorskip("vllm.version", reason="vLLM is not installed")


def read(side_file: dict[str, Any]) -> dict[str, Any]:
    """What vLLM makes of a hf_quant_config.json where config.json says nothing."""
    importlib.import_module("vllm.config")  # the convertor cannot be imported before it
    from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

    config = SimpleNamespace(quantization_config=side_file, model_type="qwen3_next")
    found: dict[str, Any] = ModelArchConfigConvertorBase(config, config).get_quantization_config()
    return found


def test_the_side_file_alone_says_what_it_is() -> None:
    assert read(modelopt.side_file(["lm_head"]))["quant_method"] == "modelopt_fp4"


def test_another_producer_would_not_be_read() -> None:
    """The control: this is what the name is for."""
    side = modelopt.side_file([])
    side["producer"] = {"name": "gb10.testbed", "version": "0.1.0"}
    assert read(side)["quant_method"] == ""
