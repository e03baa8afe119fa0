"""The reference itself against transformers, in float32, over the whole vocabulary.

Both read the same NVFP4 weights, dequantised: those of the demo model and of a random Qwen3-MoE. That makes
the reference a reference, above all for the gated delta net, which vLLM's CPU kernels run in bfloat16 only.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gb10_lab.testbed.quantize import quantize_checkpoint

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from reference.checkpoint import Checkpoint  # noqa: E402
from reference.model import Model  # noqa: E402
from reference.random_moe import UNQUANTIZED, write_random_moe  # noqa: E402

LENGTHS = (1, 5, 70, 130)
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The matrices are small: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _write_dequantized(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the checkpoint in float32, without quantisation and without the MTP head."""
    folder.mkdir()
    names = [name for name in checkpoint.names() if not name.startswith("mtp.")]
    quantized = set(checkpoint.quantized_names())
    plain = {
        name: checkpoint.linear(name.removesuffix(".weight")).weight
        if name in quantized
        else checkpoint.tensor(name)
        for name in names
    }
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}), encoding="utf-8")


@pytest.mark.parametrize("architecture", ["qwen3_moe", "qwen3_next"])
def test_reference_equals_transformers(
    architecture: str, testbed: Path, demo_model: Path, tmp_path: Path
) -> None:
    packed = demo_model
    if architecture == "qwen3_moe":
        packed = tmp_path / "packed"
        write_random_moe(tmp_path / "original", testbed)
        quantize_checkpoint(tmp_path / "original", packed, UNQUANTIZED)
    checkpoint = Checkpoint(packed)
    assert checkpoint.config["model_type"] == architecture
    _write_dequantized(checkpoint, tmp_path / "plain")
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
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
