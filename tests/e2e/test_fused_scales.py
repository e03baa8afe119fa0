"""Fused layers whose parts have global scales of their own, and missing input scales: the right tokens.

The model and the comparison are those of test_numerics.py: float32, so that a wrong scale cannot hide.
"""

import importlib.util
import math
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import command, free_port
from reference import forms
from reference.checkpoint import Checkpoint
from reference.forms import Form
from reference.model import Model
from test_numerics import (
    Serve,
    _assert_equal,
    _assert_equal_but_for_roundings,
    _originals,
    moe,
    moe_originals,
    serve,
)

from gb10.nvfp4 import quantize
from gb10.vllm_plugin.cpu.mode import ENV_NAME

__all__ = ["moe", "moe_originals", "serve"]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

Change = Callable[[Form], Form]


def _halves(form: Form) -> Form:
    """The same values; some parts of fused layers have twice the global scale and half the block scales."""
    tensors, changed = dict(form.tensors), set()
    for name in [name for name in tensors if name.endswith(("up_proj.weight_scale", "k_proj.weight_scale"))]:
        halved = (tensors[name].float() / 2).to(torch.float8_e4m3fn)
        if torch.equal(halved.float() * 2, tensors[name].float()):
            tensors[name], tensors[f"{name}_2"] = halved, tensors[f"{name}_2"] * 2
            changed.add(name.split(".")[-2])
    assert changed == {"up_proj", "k_proj"}
    return replace(form, tensors=tensors)


@pytest.fixture(scope="module")
def own_scales(moe: Path, moe_originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each projection quantised by itself, with a global scale of its own: no ratio is a power of two."""
    form, originals = Form.read(moe), _originals(moe_originals)
    tensors = dict(form.tensors)
    for name in [name for name in tensors if name.endswith(".weight_scale")]:
        weight = name.removesuffix("_scale")
        tensors[weight], tensors[name], tensors[f"{name}_2"] = quantize(originals(weight))
    gate, up = (
        float(tensors[f"model.layers.0.mlp.experts.0.{p}_proj.weight_scale_2"]) for p in ("gate", "up")
    )
    assert math.frexp(gate / up)[0] != 0.5
    made = forms.with_exact_reciprocals(replace(form, tensors=tensors))
    return made.write(tmp_path_factory.mktemp("scales") / "own", moe)


def test_parts_that_differ_by_powers_of_two(moe: Path, serve: Serve, tmp_path: Path) -> None:
    split = _halves(Form.read(moe)).write(tmp_path / "halves", moe)
    _assert_equal(Model(Checkpoint(moe)), serve(split, "dequant"))


@pytest.mark.parametrize("mode", ["dequant", "packed"])
def test_parts_with_scales_of_their_own(mode: str, own_scales: Path, serve: Serve) -> None:
    _assert_equal(Model(Checkpoint(own_scales)), serve(own_scales, mode))


def test_activations_are_rounded_as_ever(own_scales: Path, serve: Serve) -> None:
    reference = Model(Checkpoint(own_scales, quantize_activations=True))
    _assert_equal_but_for_roundings(reference, serve(own_scales, "emulate"))


def test_compressed_tensors(own_scales: Path, serve: Serve, tmp_path: Path) -> None:
    """Their global scales are reciprocals."""
    compressed = forms.compressed_tensors(Form.read(own_scales)).write(tmp_path / "compressed", own_scales)
    _assert_equal(Model(Checkpoint(own_scales)), serve(compressed, "packed"))


def test_missing_input_scales(moe: Path, serve: Serve, tmp_path: Path) -> None:
    """Those of some experts and of a part of a linear layer; all that are left in a layer are equal."""
    form = Form.read(moe)
    gone = re.compile(r"experts\.(5|11)\..*\.input_scale|k_proj\.input_scale")
    left = {name: tensor for name, tensor in form.tensors.items() if not gone.search(name)}
    assert len(left) == len(form.tensors) - 4 * (2 * 3 + 1)
    folder = replace(form, tensors=left).write(tmp_path / "uncalibrated", moe)
    reference = Model(Checkpoint(moe, quantize_activations=True))
    _assert_equal_but_for_roundings(reference, serve(folder, "emulate"))


def test_a_layer_without_input_scales_ends_in_one_line(
    demo_model: Path, serve_variables: dict[str, str], tmp_path: Path
) -> None:
    form = Form.read(demo_model)
    gone = re.compile(r"layers\.1\.mlp\.experts\..*\.input_scale")
    left = {name: tensor for name, tensor in form.tensors.items() if not gone.search(name)}
    folder = replace(form, tensors=left).write(tmp_path / "uncalibrated", demo_model)
    done = subprocess.run(
        [*command(), str(folder), "--port", str(free_port())],
        env=serve_variables | {ENV_NAME: "emulate"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    expected = r"gb10: error: model\.layers\.1\.mlp\.experts: .* no input_scale .*"
    assert [line for line in said.splitlines() if re.fullmatch(expected, line)], said
    assert "Traceback" not in said
