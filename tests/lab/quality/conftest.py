"""A small model with random weights, for the quality gate."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gb10.files import write_json
from gb10_lab.quality.evaluate import evaluate, one_thread
from gb10_lab.quality.figures import Figures
from gb10_lab.quality.text import SEPARATOR
from gb10_lab.quality.variants import Tensors, Variant, make_variants
from gb10_lab.testbed import checkpoint
from gb10_lab.testbed.architecture import FULL, LINEAR, Architecture
from gb10_lab.testbed.model import Model, initialise

SMALL = Architecture(
    vocabulary=257,
    hidden=64,
    layer_types=(LINEAR, LINEAR, LINEAR, FULL),
    heads=2,
    kv_heads=1,
    head_dim=32,
    rotary_dim=8,
    delta_key_heads=1,
    delta_value_heads=2,
    delta_head_dim=32,
    experts=4,
    experts_per_token=2,
    expert_size=32,
    shared_expert_size=32,
)


@dataclass(frozen=True)
class SmallModel:
    """BF16 tensors with the MTP head, the amax of every site, and tokens to measure on."""

    tensors: Tensors
    amax: dict[str, float]
    tokens: torch.Tensor

    def variants(self) -> dict[str, Variant]:
        """All rows by key."""
        made = make_variants(self.tensors, self.amax, SMALL.experts_per_token)
        return {variant.key: variant for variant in made}

    def figures(self) -> dict[str, Figures]:
        """What the gate measures."""
        return evaluate(SMALL, list(self.variants().values()), self.tokens)


@pytest.fixture(scope="session", autouse=True)
def single_thread() -> Iterator[None]:
    """Tiny matrices: threads would only wait for each other."""
    with one_thread():
        yield


@pytest.fixture(scope="session")
def small_model() -> SmallModel:
    model = initialise(Model(SMALL), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            elif name.endswith(
                ("_proj.weight", "experts.gate", "experts.up", "experts.down", "lm_head.weight")
            ):
                # A few large weights, and enough effect for formats to differ.
                parameter.mul_(3)
                rows = torch.randint(parameter.shape[-2], (4,), generator=generator)
                parameter[..., rows, :] *= 4
    tokens = torch.randint(SMALL.vocabulary, (6, 97), generator=generator)
    amax: dict[str, float] = {}

    def record(name: str, tensor: torch.Tensor) -> torch.Tensor:
        amax[name] = max(amax.get(name, 0.0), float(tensor.abs().max()))
        return tensor

    checkpoint.round_to_bf16(model)
    with torch.inference_mode():
        model.logits(model(tokens, record), record)
    tensors = {name: t.to(torch.bfloat16) for name, t in checkpoint.to_tensors(model).items()}
    return SmallModel(tensors, amax, tokens)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """One token a byte, and the separator as token 0: 257 in all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {SEPARATOR: 0} | {character: place for place, character in enumerate(alphabet, 1)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([SEPARATOR])
    return made


@pytest.fixture
def model_folder(small_model: SmallModel, byte_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """The small model as the gate reads it."""
    folder = tmp_path / "model"
    checkpoint.save(checkpoint.from_tensors(SMALL, small_model.tensors), folder)
    byte_tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "calibration.json", {"tokens": 582, "amax": small_model.amax})
    return folder


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    """Held-out text that is long enough for 600 tokens."""
    file = tmp_path / "heldout.jsonl"
    documents = [
        {"package": "p", "path": f"{number}.py", "text": f"def f{number}(x): return x + {number}\n" * 4}
        for number in range(20)
    ]
    file.write_text("".join(json.dumps(each) + "\n" for each in documents), encoding="utf-8")
    return file
