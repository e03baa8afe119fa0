"""The KL of a served model against that of the quality gate."""

import math
from dataclasses import replace
from typing import Any

from gb10_lab.engine_bench.configurations import CONFIGURATIONS
from gb10_lab.engine_bench.served import compare, row_of
from gb10_lab.quality.figures import Figures

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
