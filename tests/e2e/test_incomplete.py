"""Broken variants of the demo model: what the headers show, and what the proof of the load says.

All in one process that loads the models and starts no engine.
"""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import command, free_port
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], None]
MTP = {"method": "mtp", "num_speculative_tokens": 1}
EXPERT = "model.layers.2.mlp.experts.7."
KEYS = "model.layers.3.self_attn.k_proj.weight"


@dataclass(frozen=True)
class Case:
    """A variant, and what must be said of it; None: nothing. ``values``: the headers cannot show it."""

    change: Change
    said: str | None
    speculative: Mapping[str, object] | None = None
    values: bool = False
    config: Mapping[str, object] | None = None
    only_headers: bool = False
    """One process of many reads a part of each tensor, so that the load does not show it."""


def without(*starts: str) -> Change:
    def change(tensors: Tensors) -> None:
        gone = [name for name in tensors if name.startswith(starts)]
        assert gone
        for name in gone:
            del tensors[name]

    return change


def with_value(name: str, value: float) -> Change:
    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[-1] = value

    return change


def with_byte(name: str, value: int) -> Change:
    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name].view(torch.uint8).view(-1)[-1] = value

    return change


def half(name: str) -> Change:
    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name][: len(tensors[name]) // 2].contiguous()

    return change


def stored_as(name: str, dtype: torch.dtype) -> Change:
    """The same numbers, in another type."""

    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].to(dtype)

    return change


def bytes_of(name: str, dtype: torch.dtype) -> Change:
    """The same bytes, said to be of another type."""

    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].view(dtype)

    return change


def ones(name: str, *shape: int) -> Change:
    def change(tensors: Tensors) -> None:
        tensors[name] = torch.ones(shape, dtype=tensors[name].dtype)

    return change


def float_block_scale(value: float) -> Change:
    """Block scales in F32, one of them with this value."""
    name = f"{EXPERT}gate_proj.weight_scale"

    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].to(torch.float32)
        tensors[name][0, 0] = value

    return change


def with_extra(name: str, dtype: torch.dtype, *shape: int) -> Change:
    def change(tensors: Tensors) -> None:
        assert name not in tensors
        tensors[name] = torch.ones(shape).to(dtype)

    return change


def nothing(_: Tensors) -> None:
    return None


CASES = {
    "whole": Case(nothing, None),
    "whole, with MTP": Case(nothing, None, MTP),
    "no MTP weights, and none asked for": Case(without("mtp."), None),
    "no input scale": Case(without(f"{EXPERT}up_proj.input_scale"), None),
    "no head": Case(without("lm_head"), "no lm_head.weight, which the model needs"),
    # patches/vllm/0012
    "no head, tied": Case(without("lm_head"), None, config={"tie_word_embeddings": True}),
    "no norm": Case(without("model.norm"), "no model.norm.weight, which the model needs"),
    "no embedding": Case(without("model.embed_tokens"), "no model.embed_tokens.weight, which"),
    "no k_proj": Case(without(KEYS), f"no {KEYS}, which"),
    "no gate of a shared expert": Case(
        without("model.layers.1.mlp.shared_expert.gate_proj.weight_scale_2"),
        "no model.layers.1.mlp.shared_expert.gate_proj.weight_scale_2, which",
    ),
    "no state decay": Case(
        without("model.layers.0.linear_attn.A_log"), "no model.layers.0.linear_attn.A_log"
    ),
    "no expert": Case(without(EXPERT), rf"no {EXPERT}\w+.weight\w* and 8 more, which"),
    "no expert weight": Case(
        without(f"{EXPERT}down_proj.weight"), rf"no {EXPERT}down_proj.weight\w* and 2 more"
    ),
    "no expert block scales": Case(
        without(f"{EXPERT}up_proj.weight_scale"), rf"no {EXPERT}up_proj.weight_scale"
    ),
    "no expert global scale": Case(
        without(f"{EXPERT}gate_proj.weight_scale_2"), f"no {EXPERT}gate_proj.weight_scale_2, which"
    ),
    "no MTP weights": Case(
        without("mtp."), r"which the draft model \(mtp\) needs; .*--speculative-config", MTP
    ),
    "no MTP k_proj": Case(
        without("mtp.layers.0.self_attn.k_proj"),
        r"no mtp.layers.0.self_attn.k_proj.weight, which the draft",
        MTP,
    ),
    "no MTP projection": Case(without("mtp.fc"), r"no mtp.fc.weight, which the draft model \(mtp\)", MTP),
    "block scales as bytes": Case(
        bytes_of(f"{EXPERT}gate_proj.weight_scale", torch.uint8),
        f"{EXPERT}gate_proj.weight_scale is of type U8, and the model reads it as F8_E4M3, which would",
    ),
    "dense block scales as bytes": Case(
        bytes_of("model.layers.3.self_attn.o_proj.weight_scale", torch.uint8),
        "model.layers.3.self_attn.o_proj.weight_scale is of type U8, and",
    ),
    "norm as integers": Case(
        stored_as("model.norm.weight", torch.int64), "model.norm.weight is of type I64, and .* as BF16"
    ),
    "norm as booleans": Case(
        stored_as("model.norm.weight", torch.bool), "model.norm.weight is of type BOOL, and .* as BF16"
    ),
    "MTP norm as integers": Case(
        stored_as("mtp.norm.weight", torch.int64), "mtp.norm.weight is of type I64, and .* as BF16", MTP
    ),
    "codes as floats": Case(
        stored_as(f"{EXPERT}down_proj.weight", torch.bfloat16),
        f"{EXPERT}down_proj.weight is of type BF16, and .* as U8",
    ),
    "codes as FP8": Case(
        bytes_of(f"{EXPERT}down_proj.weight", torch.float8_e4m3fn),
        f"{EXPERT}down_proj.weight is of type F8_E4M3, and .* as U8",
    ),
    "codes as signed bytes": Case(bytes_of(f"{EXPERT}down_proj.weight", torch.int8), None),
    "norm in F32": Case(stored_as("model.norm.weight", torch.float32), None),
    "global scale in BF16": Case(stored_as(f"{EXPERT}up_proj.weight_scale_2", torch.bfloat16), None),
    "block scales in F32, exact": Case(float_block_scale(1.125), None),
    "block scales in F32, not exact": Case(
        float_block_scale(1.1),
        f"{EXPERT}gate_proj.weight_scale is of type F32, and .* as F8_E4M3",
        values=True,
    ),
    "block scales of a layer that is not quantised": Case(
        with_extra("model.layers.3.self_attn.q_proj.weight_scale", torch.float8_e4m3fn, 512, 16),
        r"vLLM cannot load model.layers.3.self_attn.q_proj.weight_scale \(F8_E4M3, \[512, 16\]\) .*'data'",
    ),
    "state decay in another shape": Case(
        ones("model.layers.0.linear_attn.A_log", 2, 2),
        r"vLLM cannot load model.layers.0.linear_attn.A_log \(\S+, \[2, 2\]\) into "
        r"model.layers.0.linear_attn.A_log \(\S+, \[4\]\)",
    ),
    "state decay of one number": Case(
        ones("model.layers.0.linear_attn.A_log", 1),
        r"model.layers.0.linear_attn.A_log \(\S+, \[1\]\) into .*\[4\]",
    ),
    "a norm of one number": Case(ones("model.norm.weight", 1), r"model.norm.weight \(\S+, \[1\]\) into"),
    "a norm of two dimensions": Case(
        ones("model.layers.1.input_layernorm.weight", 1, 256),
        r"model.layers.1.input_layernorm.weight \(\S+, \[1, 256\]\) into",
    ),
    "state decay of more heads": Case(
        ones("model.layers.0.linear_attn.A_log", 8),
        r"model.layers.0.linear_attn.A_log \(BF16, \[8\]\) has more numbers than the model",
        only_headers=True,
    ),
    "keys of more heads": Case(
        ones(KEYS, 256, 256), rf"{KEYS} \(BF16, \[256, 256\]\) has more numbers than", only_headers=True
    ),
    # `gb10 serve` says more of it before (tests/unit/checkpoint/test_inventory.py): vLLM takes what there is.
    "half of the block scales": Case(
        half(f"{EXPERT}up_proj.weight_scale"), r"no part of \S+w13_weight_scale, which"
    ),
    "embedding NaN": Case(
        with_value("model.embed_tokens.weight", math.nan),
        "model.embed_tokens.weight has a value that is nan",
        values=True,
    ),
    "global scale infinite": Case(
        with_value(f"{EXPERT}up_proj.weight_scale_2", math.inf),
        f"{EXPERT}up_proj.weight_scale_2 has",
        values=True,
    ),
    "global scale 0": Case(
        with_value("model.layers.0.linear_attn.out_proj.weight_scale_2", 0),
        "model.layers.0.linear_attn.out_proj.weight_scale_2 is 0; a scale must be positive",
        values=True,
    ),
    "global scale negative": Case(
        with_value(f"{EXPERT}down_proj.weight_scale_2", -1),
        f"{EXPERT}down_proj.weight_scale_2 is -1",
        values=True,
    ),
    "input scale 0": Case(
        with_value(f"{EXPERT}down_proj.input_scale", 0), f"{EXPERT}down_proj.input_scale is 0", values=True
    ),
    "block scale NaN": Case(
        with_byte(f"{EXPERT}gate_proj.weight_scale", 0x7F),
        f"{EXPERT}gate_proj.weight_scale has a block scale that is NaN",
        values=True,
    ),
    "block scale negative": Case(
        with_byte("model.layers.3.self_attn.o_proj.weight_scale", 0xB8),
        "model.layers.3.self_attn.o_proj.weight_scale has a negative block scale",
        values=True,
    ),
    "block scale 0": Case(with_byte("model.layers.3.self_attn.o_proj.weight_scale", 0), None),
    "MTP norm infinite": Case(
        with_value("mtp.norm.weight", -math.inf), "mtp.norm.weight has a value that is -inf", MTP, values=True
    ),
}

PROGRAM = """
import gc, json, sys, tempfile
gc.disable()
import torch
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import get_model
from vllm.plugins import load_general_plugins

load_general_plugins()
from gb10.vllm_plugin.load_proof import rehearsal
from gb10.vllm_plugin.refusal import Refused

given, out = json.load(open(sys.argv[1])), {}

def configured(folder, speculative):
    return EngineArgs(model=folder, dtype="bfloat16", enforce_eager=True, max_model_len=512,
                      speculative_config=speculative).create_engine_config()

# A load and a child collect garbage, and would look at all that was ever imported each time.
gc.freeze()
gc.enable()
for name, (folder, speculative) in given.items():
    out[name] = [rehearsal.in_child(configured(folder, speculative))]

# As vLLM's worker for the CPU does.
torch.accelerator.empty_cache = lambda: None
init_distributed_environment(1, 0, "file://" + tempfile.mkdtemp() + "/store", 0, backend="gloo")
started = False
for name, (folder, speculative) in given.items():
    config, said = configured(folder, speculative), None
    try:
        with set_current_vllm_config(config):
            if not started:
                initialize_model_parallel(backend="gloo")
                started = True
            get_model(vllm_config=config)
            if speculative:
                draft = rehearsal.draft_config(config)
                get_model(vllm_config=draft, model_config=config.speculative_config.draft_model_config)
    except Refused as error:
        said = str(error)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    out[name].append(said)
json.dump(out, open(sys.argv[2], "w"))
"""


def write_variant(demo_model: Path, folder: Path, case: Case) -> Path:
    """Write the variant of a case to a new folder."""
    folder.mkdir()
    for file in demo_model.iterdir():
        if file.name not in ("model.safetensors", "config.json"):
            (folder / file.name).symlink_to(file)
    config = json.loads((demo_model / "config.json").read_text()) | dict(case.config or {})
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(demo_model / "model.safetensors")
    case.change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def said(
    demo_model: Path, tmp_path_factory: pytest.TempPathFactory, registered: None
) -> dict[str, tuple[str | None, str | None]]:
    """For each case what the headers and the load said."""
    folder = tmp_path_factory.mktemp("incomplete")
    given = {}
    for number, (name, case) in enumerate(CASES.items()):
        given[name] = (str(write_variant(demo_model, folder / str(number), case)), case.speculative)
    (folder / "given.json").write_text(json.dumps(given))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder / "given.json"), str(folder / "said.json")],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TORCH_COMPILE_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        name: (first, second)
        for name, (first, second) in json.loads((folder / "said.json").read_text()).items()
    }


@pytest.mark.parametrize("name", CASES)
def test_headers(said: dict[str, tuple[str | None, str | None]], name: str) -> None:
    case = CASES[name]
    headers, _ = said[name]
    if case.said is None or case.values:
        assert headers is None
    else:
        assert headers is not None
        assert re.search(case.said, headers), headers


@pytest.mark.parametrize("name", CASES)
def test_load(said: dict[str, tuple[str | None, str | None]], name: str) -> None:
    case = CASES[name]
    _, load = said[name]
    if case.said is None or case.only_headers:
        assert load is None
    else:
        assert load is not None
        assert load.startswith("gb10: refused: the checkpoint ")
        assert "\n" not in load
        assert re.search(case.said, load), load


def _refused(folder: Path, variables: dict[str, str]) -> tuple[str, subprocess.CompletedProcess[str]]:
    """The last line of a `gb10 serve` that refuses a checkpoint with status 2, and all of it."""
    done = subprocess.run(
        [*command(), str(folder), "--port", str(free_port())],
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr.strip().splitlines()[-1], done


@pytest.mark.parametrize(
    "name",
    [
        "no expert",
        "embedding NaN",
        "norm as integers",
        "state decay in another shape",
        "keys of more heads",
    ],
)
def test_serve_refuses(name: str, demo_model: Path, serve_variables: dict[str, str], tmp_path: Path) -> None:
    """One line and status 2, whether the headers show it or the values at the load."""
    case = CASES[name]
    last, done = _refused(write_variant(demo_model, tmp_path / "model", case), serve_variables)
    assert last.startswith("gb10: error: the checkpoint "), done.stderr
    assert case.said is not None
    assert re.search(case.said, last), last


def deaf(tensors: Tensors) -> None:
    """No layer's attention brings anything, by scales that are honest numbers."""
    for name, tensor in tensors.items():
        if name.endswith(("self_attn.o_proj.weight_scale", "linear_attn.out_proj.weight_scale")):
            tensors[name] = torch.zeros_like(tensor.view(torch.uint8)).view(tensor.dtype)
        elif name.endswith(("self_attn.o_proj.weight", "linear_attn.out_proj.weight")):
            tensors[name] = torch.zeros_like(tensor)


def test_the_canary_refuses(demo_model: Path, serve_variables: dict[str, str], tmp_path: Path) -> None:
    """A model that loads and computes numbers, and does not listen to what it is told."""
    folder = write_variant(demo_model, tmp_path / "model", Case(deaf, None))
    said = (
        "gb10: error: the model gives the same answer, bit by bit, to different texts; its weights or scales"
    )
    last, done = _refused(folder, serve_variables)
    assert last.startswith(said), done.stderr
    assert "ready after" not in done.stdout
