"""Damaged JSON in a checkpoint gives a plan or one line, never a traceback. A seeded generator damages it."""

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gb10.checkpoint.hub import locate
from gb10.errors import UserError
from gb10.machine import memory
from gb10.machine.gpu import Gpu
from gb10.serve import command
from gb10.serve.settings import parse
from gb10.units import GIB

Make = Callable[..., Path]
GB10 = Gpu("NVIDIA GB10", (12, 1), 120 * GIB, unified=True)
CONFIG: dict[str, Any] = {
    "num_experts": 4,
    "vocab_size": 100,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "hybrid_override_pattern": "M*",
    "linear_attn_config": {"num_heads": 2, "head_dim": 8, "full_attn_layers": [1]},
    "attn_layer_period": 2,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "sliding_window": 16,
    "num_kv_shared_layers": 1,
    "quantization_config": {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "kv_cache_scheme": {"type": "float", "num_bits": 8},
        "config_groups": {"group_0": {"weights": {"num_bits": 4}, "targets": ["Linear"]}},
        "ignore": ["lm_head"],
    },
}
FILES: dict[str, dict[str, Any]] = {
    "config.json": CONFIG,
    "model.safetensors.index.json": {
        "metadata": {"total_size": 1},
        "weight_map": {"lm_head.weight": "model.safetensors"},
    },
    "hf_quant_config.json": {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}},
    "tokenizer_config.json": {"chat_template": "x", "model_max_length": 5},
}
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    7,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "NVFP4",
    "x" * 500,
    [],
    [None],
    ["attention", 5, None, {}],
    {},
    {"a": {"b": []}},
)


def _damage(value: Any, random_: random.Random) -> Any:
    """A copy with one value in it replaced, left out or added."""
    if not isinstance(value, dict | list) or not value or random_.random() < 0.3:
        return copy.deepcopy(random_.choice(VALUES))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = random_.choice(keys)
    action = random_.random()
    if action < 0.15:
        del value[key]
    elif action < 0.2 and isinstance(value, dict):
        value["text_config"] = copy.deepcopy(random_.choice([*VALUES, value]))
    else:
        value[key] = _damage(value[key], random_)
    return value


def _deep(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


@pytest.fixture
def machine(clean_environment: pytest.MonkeyPatch) -> None:
    """64 GiB are free."""
    clean_environment.setattr(memory, "available", lambda: memory.Available(64 * GIB, "MemAvailable"))


def _attempt(folder: Path) -> str:
    """What becomes of it: "planned", or the refusal, which is one line."""
    try:
        found = locate(str(folder))
        for gpus in ([], [GB10]):
            plan = command.build(parse([], dict(os.environ)), found, gpus, flashinfer=False)
            assert plan.chats in (True, False)
            assert all("\n" not in note for note in plan.notes)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return "planned"


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("name", FILES)
def test_damaged_json_is_a_plan_or_one_line(make_checkpoint: Make, name: str) -> None:
    folder = make_checkpoint(config=CONFIG)
    plain = json.loads((folder / "config.json").read_text())
    whole = plain if name == "config.json" else FILES[name]
    outcomes = set()
    # vLLM's classes read what config.json says: a second each.
    for seed in range(25 if name == "config.json" else 250):
        random_ = random.Random(seed)
        damaged = copy.deepcopy(whole)
        for _ in range(random_.randint(1, 4)):
            damaged = _damage(damaged, random_)
        (folder / name).write_text(json.dumps(damaged))
        outcomes.add(_attempt(folder) == "planned")
    # The generator does both: it breaks what matters and what does not.
    assert outcomes >= ({True, False} if name in ("config.json", "model.safetensors.index.json") else {True})


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "text", [_deep(100_000), "[" * 100_000, "9" * 5000, "\x00", '{"a": 1e999999}', "nul"]
)
def test_json_that_no_parser_likes(make_checkpoint: Make, name: str, text: str) -> None:
    folder = make_checkpoint(config=CONFIG)
    (folder / name).write_text(text)
    outcome = _attempt(folder)
    if name == "config.json":
        assert outcome.startswith("config ")


@pytest.mark.usefixtures("machine")
def test_a_header_that_is_nested_too_deeply(make_checkpoint: Make) -> None:
    folder = make_checkpoint(config=CONFIG)
    text = _deep(100_000).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert "damaged safetensors header" in _attempt(folder)
