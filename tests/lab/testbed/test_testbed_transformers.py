"""transformers' own Qwen3-Next reads the testbed's checkpoint and computes the same: it is that architecture.

Both compute in float32. A model with random weights, made here, always takes part; so does the trained one of
models/testbed (or of GB10_TESTBED), where it is. The controls change one detail of the transformers model
each, and must not agree.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from gb10_lab.testbed import checkpoint
from gb10_lab.testbed.architecture import TESTBED, Architecture
from gb10_lab.testbed.model import Model, initialise
from small_model import mixture
from tokenizers import Tokenizer

transformers = pytest.importorskip("transformers")
modeling = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")

TOP_1 = 0.999
WINDOW = 512
WINDOWS = 8
CLOSE = 0.99
"""The share of positions whose logits are all close. At the others a router may have met a tie."""
DIFFERENCE = 5e-4
"""Close means within so many standard deviations of the logits. Seen: 4e-5."""
REPOSITORY = Path(__file__).resolve().parents[3]

SMALL = Architecture(vocabulary=512, layer_types=TESTBED.layer_types[:4], mtp=True)


@dataclass(frozen=True)
class Case:
    """A model folder and tokens `[WINDOWS, WINDOW]` for it, with the logits that gb10_lab.testbed gives."""

    folder: Path
    tokens: torch.Tensor
    logits: torch.Tensor


def random_model(folder: Path) -> torch.Tensor:
    """Write a model with random weights, norms too; give random tokens for it."""
    model = initialise(Model(SMALL), seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        # Large enough for the router and the norms to matter.
        model.lm_head.weight.mul_(10)
        for layer in range(len(model.model.layers)):
            mixture(model, layer).gate.weight.mul_(4)
    checkpoint.save(model, folder)
    return torch.randint(SMALL.vocabulary, (WINDOWS, WINDOW), generator=generator)


def trained_model() -> tuple[Path, torch.Tensor]:
    """The trained model, and text it was not trained on: held-out text, or this project's own sources."""
    folder = Path(os.environ.get("GB10_TESTBED", REPOSITORY / "models" / "testbed"))
    if not folder.is_dir():
        pytest.skip("there is no models/testbed here, and GB10_TESTBED names no other model")
    if "GB10_HELDOUT" in os.environ:
        lines = Path(os.environ["GB10_HELDOUT"]).read_text(encoding="utf-8").splitlines()
        text = "\n".join(str(json.loads(line)["text"])[:4000] for line in lines[:: max(1, len(lines) // 10)])
    else:
        text = "\n".join(
            file.read_text(encoding="utf-8")
            for file in sorted((REPOSITORY / "tests" / "reference").glob("*.py"))
        )
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    return folder, torch.tensor(ids[: WINDOWS * WINDOW]).reshape(WINDOWS, WINDOW)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["random", "trained"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    if request.param == "random":
        folder = tmp_path_factory.mktemp("transformers")
        tokens = random_model(folder)
    else:
        folder, tokens = trained_model()
    ours = checkpoint.load(folder)
    with torch.inference_mode():
        return Case(folder, tokens, torch.cat([ours.logits(ours(row[None])) for row in tokens]))


def theirs(case: Case, tokens: torch.Tensor, **changes: Any) -> torch.Tensor:
    """The logits of transformers' model in float32, with `changes` of config.json."""
    content = json.loads((case.folder / "config.json").read_text(encoding="utf-8"))
    model, report = transformers.Qwen3NextForCausalLM.from_pretrained(
        case.folder,
        config=transformers.Qwen3NextConfig(**(content | changes)),
        dtype=torch.float32,
        output_loading_info=True,
    )
    # Only the MTP head is left over: transformers has none.
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert all(name.startswith("mtp.") for name in report["unexpected_keys"])
    with torch.inference_mode():
        logits: torch.Tensor = torch.cat([model(row[None]).logits for row in tokens])
    return logits


@dataclass(frozen=True)
class Agreement:
    top_1: float
    """The share of equal choices."""
    close: float
    """The share of positions whose logits are all close."""
    largest: float
    """Of the differences of two logits, in standard deviations of the logits."""


def agreement(case: Case, logits: torch.Tensor) -> Agreement:
    ours = case.logits[: logits.shape[0]]
    differences = (ours - logits).abs().amax(-1) / ours.std()
    same = ours.argmax(-1) == logits.argmax(-1)
    found = Agreement(
        float(same.double().mean()),
        float((differences < DIFFERENCE).double().mean()),
        float(differences.max()),
    )
    print(found)
    return found


def test_transformers_agrees(case: Case) -> None:
    found = agreement(case, theirs(case, case.tokens))
    assert found.top_1 >= TOP_1
    assert found.close >= CLOSE


def plain_norm(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def forward(self: Any, x: torch.Tensor) -> Any:
        return self._norm(x) * self.weight

    monkeypatch.setattr(modeling.Qwen3NextRMSNorm, "forward", forward)
    return {}


CONTROLS: dict[str, Callable[[pytest.MonkeyPatch], dict[str, Any]]] = {
    "plain norm": plain_norm,
    "gelu": lambda _: {"hidden_act": "gelu"},
    "rotary 0.5": lambda _: {"partial_rotary_factor": 0.5},
    "rope theta": lambda _: {"rope_theta": 1e6},
    "one expert less": lambda _: {"num_experts_per_tok": 3},
}


@pytest.mark.parametrize("control", CONTROLS)
def test_control_one_changed_detail_does_not_agree(
    control: str, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = agreement(case, theirs(case, case.tokens[:2], **CONTROLS[control](monkeypatch)))
    assert found.top_1 < TOP_1
    assert found.close < 0.5
