"""The rows as shipped, W4A16 and W4A4, against an independent forward pass of the NVFP4 checkpoint.

The reference (tests/reference) reads the packed checkpoint, routes tokens to experts one by one, runs gated
DeltaNet step by step, and quantises activations with its own arithmetic. It shares no line with the gate.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gb10_lab.quality.variants import Variant
from gb10_lab.testbed import checkpoint
from gb10_lab.testbed.quantize import quantize_checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from reference.checkpoint import Checkpoint
from reference.model import Model

NEAR = 1e-3
"""In standard deviations of the logits. BF16 and NVFP4 are 0.1 and more apart here."""


@pytest.fixture(scope="module")
def rows(small_model: Any) -> dict[str, Variant]:
    made: dict[str, Variant] = small_model.variants()
    return made


@pytest.fixture
def packed(model_folder: Path, tmp_path: Path) -> Path:
    """The small model as an NVFP4 checkpoint."""
    (model_folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    quantize_checkpoint(model_folder, tmp_path / "packed")
    return tmp_path / "packed"


def share_near(row: Variant, packed: Path, tokens: torch.Tensor, *, w4a4: bool, weights: Variant) -> float:
    """The share of positions at which all logits of a row are those of the reference.

    The reference takes `weights`: those of the checkpoint as the engine rounds them, to BF16.
    """
    arch = dataclasses.replace(checkpoint.read_architecture(packed), mtp=False)
    model = checkpoint.from_tensors(arch, row.tensors)
    reference = Model(Checkpoint(packed, quantize_activations=w4a4, substitute=weights.tensors.__getitem__))
    near = []
    for window in tokens:
        with torch.inference_mode():
            ours = model.logits(model(window[None], row.site), row.site)[0]
        theirs = reference.logits(window.tolist())
        near.append((ours - theirs).abs().amax(-1) < NEAR * theirs.std())
    return float(torch.cat(near).double().mean())


@pytest.mark.parametrize(("key", "w4a4"), [("shipped", False), ("shipped-w4a4", True)])
def test_a_row_is_what_the_reference_makes_of_the_checkpoint(
    key: str, w4a4: bool, rows: dict[str, Variant], packed: Path, small_model: Any
) -> None:
    share = share_near(rows[key], packed, small_model.tokens[:2], w4a4=w4a4, weights=rows["shipped"])
    # Activations are rounded in steps: two sums that differ in their last bit may round apart, and everything
    # after them follows.
    assert share > (0.8 if w4a4 else 0.999)


@pytest.mark.parametrize(
    ("key", "w4a4"), [("bf16", False), ("shipped", True), ("shipped-w4a4", False), ("fp8-kv", False)]
)
def test_control_another_row_is_not(
    key: str, w4a4: bool, rows: dict[str, Variant], packed: Path, small_model: Any
) -> None:
    assert share_near(rows[key], packed, small_model.tokens[:2], w4a4=w4a4, weights=rows["shipped"]) < 0.1


def test_the_weights_are_those_of_the_packed_file_rounded_once(
    rows: dict[str, Variant], packed: Path
) -> None:
    stored = Checkpoint(packed)
    names = [name for name in stored.quantized_names() if not name.startswith("mtp.")]
    assert len(names) == 3 + 1 + 4 * 3 * (4 + 1)
    for name in names:
        exact = stored.linear(name.removesuffix(".weight")).weight
        assert torch.equal(rows["shipped"].tensors[name], exact.to(torch.bfloat16).to(torch.float32)), name
