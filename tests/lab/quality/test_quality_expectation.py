"""Recorded figures against new ones."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from gb10.errors import UserError
from gb10_lab.quality import expectation
from gb10_lab.quality.expectation import (
    ACTIVATIONS,
    CACHE,
    WEIGHTS,
    Source,
    Tolerance,
    content,
    differences,
    load,
)
from gb10_lab.quality.figures import Figures

SOURCE = Source(4096, 1024, 0, "m" * 64, "c" * 64, "t" * 64)
BASE = Figures(20.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1000)
ROW = Figures(21.0, 1.0, 0.05, 0.01, 0.95, 0.01, 0.02, 0.001, 600)
FIGURES = {"bf16": BASE, "shipped": ROW, "fp8-kv": ROW, "shipped-w4a4": ROW}
TOLERANCES = {"shipped": WEIGHTS, "fp8-kv": CACHE, "shipped-w4a4": ACTIVATIONS}


@pytest.fixture
def recorded(tmp_path: Path) -> dict[str, Any]:
    """As a run reads it: through a file."""
    file = tmp_path / "expectation.json"
    file.write_text(json.dumps(content(SOURCE, FIGURES)), encoding="utf-8")
    return load(file)


def test_the_same_figures_are_as_recorded(recorded: dict[str, Any]) -> None:
    assert differences(recorded, SOURCE, FIGURES) == []


def limit(tolerance: Tolerance, field: str) -> float:
    return {
        "perplexity": ROW.perplexity * tolerance.perplexity,
        "top1": tolerance.top1,
        "kl": ROW.kl * tolerance.kl + tolerance.kl_floor,
    }[field]


@pytest.mark.parametrize("field", ["perplexity", "top1", "kl"])
@pytest.mark.parametrize("key", TOLERANCES)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_figure_may_move_by_its_tolerance_only(
    field: str, key: str, sign: int, recorded: dict[str, Any]
) -> None:
    for share, off in ((0.9, False), (1.1, True)):
        step = sign * share * limit(TOLERANCES[key], field)
        moved = dataclasses.replace(ROW, **{field: getattr(ROW, field) + step})
        lines = differences(recorded, SOURCE, FIGURES | {key: moved})
        assert len(lines) == off
        assert all(line.startswith(f"{key}: {field} ") for line in lines)


def test_rows_that_round_while_they_run_may_move_further() -> None:
    for field in ("perplexity", "top1", "kl"):
        assert limit(WEIGHTS, field) < limit(CACHE, field) < limit(ACTIVATIONS, field)


def test_bytes_must_be_equal_and_nan_is_off(recorded: dict[str, Any]) -> None:
    larger = dataclasses.replace(ROW, bytes=601)
    lost = dataclasses.replace(ROW, kl=float("nan"), perplexity=float("nan"))
    assert "bytes 601, recorded 600" in differences(recorded, SOURCE, FIGURES | {"shipped": larger})[0]
    (line,) = differences(recorded, SOURCE, FIGURES | {"shipped": lost})
    assert line.startswith("shipped: perplexity nan")
    assert "kl nan" in line


def test_rows_that_are_missing_or_new_are_named(recorded: dict[str, Any]) -> None:
    without = {key: FIGURES[key] for key in ("bf16", "shipped", "fp8-kv")} | {"new": ROW}
    assert differences(recorded, SOURCE, without) == [
        "new: not recorded",
        "shipped-w4a4: recorded, not measured",
    ]


@pytest.mark.parametrize("field", ["model_sha256", "calibration_sha256", "text_sha256"])
def test_another_source_is_said_instead_of_figures(field: str, recorded: dict[str, Any]) -> None:
    changed: dict[str, Any] = {field: "f" * 64}
    other = dataclasses.replace(SOURCE, **changed)
    moved = dataclasses.replace(ROW, kl=9.0)
    lines = differences(recorded, other, FIGURES | {"shipped": moved})
    assert len(lines) == 1
    assert lines[0].startswith(f"{field}: ffff")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": {"a": {}}}'])
def test_a_file_that_is_no_expectation_is_a_user_error(text: str, tmp_path: Path) -> None:
    file = tmp_path / "expectation.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"is no expectation of gb10_lab\.quality"):
        load(file)
    with pytest.raises(UserError, match=r"is no expectation of gb10_lab\.quality"):
        expectation.load(tmp_path / "none")
