"""The reference itself against transformers, in float32, over the whole vocabulary.

Both read the same NVFP4 weights, dequantised: those of the demo model, of the Qwen3.5-MoE it becomes, and
of random models. That makes the reference a reference, above all for the gated delta net, which vLLM's CPU
kernels run in bfloat16 only.
"""

from pathlib import Path

import pytest
import torch
from reference import forms
from reference.checkpoint import Checkpoint
from reference.forms import Form
from reference.model import Model
from reference.random_moe import UNQUANTIZED, write_random_dense, write_random_moe

from gb10_lab.testbed.quantize import quantize_checkpoint

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (1, 5, 70, 130)
TOLERANCE = 1e-4


def _dequantized(checkpoint: Checkpoint) -> Form:
    """Give the checkpoint in float32, without quantisation and without the MTP head."""
    names = [name for name in checkpoint.names() if not name.startswith("mtp.")]
    quantized = set(checkpoint.quantized_names())
    plain = {
        name: checkpoint.linear(name.removesuffix(".weight")).weight
        if name in quantized
        else checkpoint.tensor(name)
        for name in names
    }
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    return Form(plain, config | {"dtype": "float32"})


@pytest.mark.parametrize("architecture", ["qwen3", "qwen3_moe", "qwen3_next", "qwen3_5_moe"])
def test_reference_equals_transformers(
    architecture: str, testbed: Path, demo_model: Path, tmp_path: Path
) -> None:
    packed, kind = demo_model, transformers.AutoModelForCausalLM
    if architecture in ("qwen3", "qwen3_moe"):
        packed = tmp_path / "packed"
        write = write_random_dense if architecture == "qwen3" else write_random_moe
        write(tmp_path / "original", testbed)
        quantize_checkpoint(tmp_path / "original", packed, UNQUANTIZED)
    checkpoint = Checkpoint(packed)
    plain = _dequantized(checkpoint)
    if architecture == "qwen3_5_moe":
        plain = forms.with_fused_experts(forms.qwen3_5_moe(plain))
        kind = transformers.Qwen3_5MoeForConditionalGeneration
    assert plain.config["model_type"] == architecture
    theirs, loading = kind.from_pretrained(
        plain.write(tmp_path / "plain", testbed),
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    ours = Model(checkpoint)
    generator = torch.Generator().manual_seed(0)
    for length in LENGTHS:
        tokens = torch.randint(checkpoint.config["vocab_size"], (length,), generator=generator)
        with torch.inference_mode():
            expected = theirs(tokens.unsqueeze(0)).logits[0].log_softmax(-1)
        found = ours.logits(tokens.tolist()).log_softmax(-1)
        difference = float((found - expected).abs().max())
        print(f"{architecture}, {length} tokens: max |dlogprob| {difference:.1e}")
        assert difference < TOLERANCE
        assert torch.equal(found.argmax(-1), expected.argmax(-1))
