"""The KL of a served model against that of the quality gate."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gb10_lab.cli import main
from gb10_lab.engine_bench import served, session
from gb10_lab.engine_bench.configurations import CONFIGURATIONS
from gb10_lab.engine_bench.served import compare, row_of
from gb10_lab.quality.evaluate import one_thread
from gb10_lab.quality.figures import Figures
from gb10_lab.quality.text import sample
from gb10_lab.quality.variants import REFERENCE
from gb10_lab.testbed import checkpoint
from gb10_lab.text.tokenizer import read_tokenizer

GATE = {"rows": dict.fromkeys(("shipped", "fp8-dense-head", "nvfp4-dense-head", "nvfp4-dense-head-search"))}
FIGURES = Figures(7.5, 0.1, 0.0, 0.0, 0.92, 0.001, 0.0280, 0.0001, 0)


def test_each_configuration_has_the_row_of_its_formats() -> None:
    rows = {name: row_of(each, GATE) for name, each in CONFIGURATIONS.items()}
    assert rows == {
        "stock-default": "shipped",
        "stock-fp8": None,
        "stock-marlin": "shipped",
        "ours-keep": "shipped",
        "ours-fp8": "fp8-dense-head",
        "ours-nvfp4": "nvfp4-dense-head-search",
        "ours-fp8-head-nvfp4": None,
    }
    older: dict[str, Any] = {"rows": {"nvfp4-dense-head": None}}
    assert row_of(CONFIGURATIONS["ours-nvfp4"], older) == "nvfp4-dense-head"


def test_a_tenth_of_the_gate_is_near_enough() -> None:
    near, far = replace(FIGURES, kl=0.0300), replace(FIGURES, kl=0.0312)
    lines, within = compare("ours-fp8", {"one piece": near}, 0.0281, "fp8-dense-head")
    assert within
    assert lines[-1].split()[2:5] == ["0.03000", "0.02810", "1.068"]
    assert not compare("ours-fp8", {"one piece": near, "pieces of 16": far}, 0.0281, "x")[1]
    assert not compare("ours-fp8", {"one piece": replace(FIGURES, kl=0.02)}, 0.0281, "x")[1]
    assert not compare("ours-fp8", {"one piece": replace(FIGURES, kl=math.nan)}, 0.0281, "x")[1]


def test_without_a_row_nothing_is_judged() -> None:
    lines, within = compare("stock-fp8", {"one piece": FIGURES}, None, None)
    assert within
    assert "gate's row: none" in lines[0]


class _Engine:
    """Stands for an engine: the BF16 model itself, with wrong logits of what comes in pieces."""

    wrong = 0.0

    def __init__(self, *_: Any) -> None:
        self.model = checkpoint.load(Path(os.environ["GB10_TESTBED"]))

    @torch.inference_mode()
    def prompt_logits(self, ids: list[int], piece: int) -> torch.Tensor:
        logits = self.model.logits(self.model(torch.tensor([ids[:-1]])))[0]
        logits[:, ::2] += self.wrong if piece else 0.1
        return logits


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A command line that measures two short windows; the gate's figures are those of the engine above."""
    monkeypatch.setattr(session, "Session", _Engine)
    monkeypatch.setattr(session, "prepare", lambda _: None)
    monkeypatch.setattr(served, "_TELL_AFTER", 1)
    whole, testbed, held_out = (
        Path(os.environ["GB10_TESTBED"]),
        tmp_path / "testbed",
        os.environ["GB10_HELDOUT"],
    )
    testbed.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (testbed / name).symlink_to(whole / name)
    recorded = json.loads((whole / "expectation.json").read_text())
    recorded |= {"tokens": 128, "window": 64}
    tokenizer = read_tokenizer(testbed / "tokenizer.json")
    text = sample(Path(held_out), tokenizer, tokens=128, window=64, seed=recorded["seed"])
    recorded["text_sha256"] = text.sha256
    (testbed / "expectation.json").write_text(json.dumps(recorded))
    names = [
        "--model",
        str(testbed),
        "--testbed",
        str(testbed),
        "--held-out",
        held_out,
        "--out",
        str(tmp_path),
    ]
    with one_thread():
        yield ["quality-served", "--config", "ours-fp8", *names]


def _record(folder: Path) -> Any:
    return json.loads((folder / "quality-ours-fp8.json").read_text())


def test_a_served_model_is_held_against_the_gate(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Engine, "wrong", 0.1)
    assert main(words) == 1, "the gate's figures are of another text"
    found = _record(tmp_path)
    assert "perplexity" in found["gate"]["reference"]
    assert found["windows"] == {"measured": 2, "wanted": 2}
    file = tmp_path / "testbed/expectation.json"
    recorded = json.loads(file.read_text())
    recorded["rows"]["bf16"]["perplexity"] = float(found["gate"]["reference"].split()[5])
    recorded["rows"]["fp8-dense-head"]["kl"] = found["served"]["one piece"]["kl"] * 1.05
    file.write_text(json.dumps(recorded))
    assert main(words) == 0
    assert _record(tmp_path)["gate"]["reference"] == "as recorded"
    monkeypatch.setattr(_Engine, "wrong", 0.2)
    assert main(words) == 1, "pieces are far off"
    assert _record(tmp_path)["served"]["pieces of 16"]["kl"] > 3 * found["served"]["one piece"]["kl"]


def test_no_window_begins_after_the_limit(words: list[str], tmp_path: Path) -> None:
    assert main([*words, "--limit", "0"]) == 1
    assert _record(tmp_path)["windows"] == {"measured": 1, "wanted": 2}


def test_the_bf16_model_must_be_the_gates() -> None:
    recorded = {"rows": {REFERENCE: {"perplexity": 7.5}}}
    assert served._reference_off(FIGURES, recorded) is None
    for perplexity in (7.5 * (1 + 2e-4), 7.5 * (1 - 2e-4), math.nan):
        assert "perplexity" in str(served._reference_off(replace(FIGURES, perplexity=perplexity), recorded))
