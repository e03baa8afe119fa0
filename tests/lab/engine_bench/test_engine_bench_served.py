"""The KL of a served model against that of the quality gate."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gb10_lab.cli import main
from gb10_lab.engine_bench import served, session
from gb10_lab.engine_bench.configurations import CONFIGURATIONS
from gb10_lab.engine_bench.served import compare, row_of
from gb10_lab.quality.figures import Figures
from gb10_lab.quality.variants import REFERENCE
from gb10_lab.testbed import checkpoint

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

    def __init__(self, *_: Any) -> None:
        self.model = checkpoint.load(Path(os.environ["GB10_TESTBED"]))

    @torch.inference_mode()
    def prompt_logits(self, ids: list[int], piece: int) -> torch.Tensor:
        logits = self.model.logits(self.model(torch.tensor([ids[:-1]])))[0]
        logits[:, ::2] += 1.0 if piece else 0.0
        return logits


@pytest.mark.parametrize(("windows", "limit", "status"), [(1, "inf", 0), (2, "0", 1)])
def test_a_served_model_is_measured(
    windows: int, limit: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "Session", _Engine)
    monkeypatch.setattr(session, "prepare", lambda _: None)
    monkeypatch.setattr(served, "_TELL_AFTER", 1)
    testbed = os.environ["GB10_TESTBED"]
    names = ["--model", testbed, "--testbed", testbed, "--held-out", os.environ["GB10_HELDOUT"]]
    words = ["quality-served", "--config", "ours-fp8", *names, "--out", str(tmp_path)]
    # Of a part of the text the gate says nothing, so nothing but the time can be wrong.
    assert main([*words, "--windows", str(windows), "--limit", limit]) == status
    found = json.loads((tmp_path / "quality-ours-fp8.json").read_text())
    assert found["windows"] == {"measured": 1, "wanted": windows}
    assert found["served"]["one piece"]["kl"] == pytest.approx(0.0, abs=1e-9)
    assert found["served"]["pieces of 16"]["kl"] > 0.05


def test_the_bf16_model_must_be_the_gates() -> None:
    recorded = {"rows": {REFERENCE: {"perplexity": 7.5}}}
    assert served._reference_off(FIGURES, recorded) is None
    for perplexity in (7.5 * (1 + 2e-4), 7.5 * (1 - 2e-4), math.nan):
        assert "perplexity" in str(served._reference_off(replace(FIGURES, perplexity=perplexity), recorded))
