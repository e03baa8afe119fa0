"""Holding one training run against another: what may differ, what may not, what is no record."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gb10_lab.cli import main

Run = Callable[[dict[str, Any]], int]

RECORD: dict[str, Any] = {
    "seed": 0,
    "data": {"corpus_sha256": "ab", "corpus_tokens": 1000, "heldout_sha256": "cd", "tokenizer_sha256": "ef"},
    "pretrain": {
        "parameters": 1234,
        "tokens": 900,
        "learning_rate": 0.005,
        "seed": 1,
        "seconds": 12.5,
        "curve": [[450, 3.0], [900, 2.0]],
        "heldout": {"loss": 1.7356, "packages": {"a": {"tokens": 20, "loss": 1.7356}}},
        "machine": {"device": "one"},
        "commit": "abc",
    },
    "draft": {
        "tokens": 90,
        "seed": 2,
        "step_weights": [1.0, 0.8],
        "acceptance": {"all": {"drafts": 18, "accepted": [0.66, 0.4485]}},
    },
    "calibrate": {"tokens": 10},
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Compare a record with RECORD; the exit status."""
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    (recorded / "training.json").write_text(json.dumps(RECORD))

    def compared(record: dict[str, Any]) -> int:
        (tmp_path / "training.json").write_text(json.dumps(record))
        return main(["compare", "--model", str(tmp_path), "--recorded", str(recorded)])

    return compared


def changed(path: str, value: object) -> dict[str, Any]:
    """RECORD with another value at a path such as "draft tokens"."""
    record = copy.deepcopy(RECORD)
    *parents, name = path.split()
    part: Any = record
    for parent in parents:
        part = part[parent]
    part[name] = value
    return record


def test_the_same_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(RECORD) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["held-out", "loss", "1.7356", "1.7356", "+0.0000", "0.020"]
    assert lines[-1].endswith("again, within tolerance")
    assert max(map(len, lines[:-1])) <= 80


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 7),
        ("pretrain seed", 8),
        ("pretrain seconds", 99.0),
        ("pretrain curve", []),
        ("pretrain machine", {"device": "other"}),
        ("draft commit", "def"),
        ("pretrain heldout loss", 1.7356 + 0.019),
        ("pretrain heldout loss", 1.7356 - 0.019),
        ("draft acceptance all accepted", [0.6649, 0.4436]),
        ("pretrain heldout packages", {}),
    ],
)
def test_what_may_differ(run: Run, path: str, value: object) -> None:
    assert run(changed(path, value)) == 0


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("data corpus_sha256", "zz", "another recipe: data corpus_sha256 is zz, recorded is ab"),
        ("data tokenizer_sha256", "zz", "another recipe: data tokenizer_sha256 is zz, recorded is ef"),
        ("pretrain parameters", 1, "another recipe: pretrain parameters is 1, recorded is 1234"),
        ("pretrain tokens", 450, "another recipe: pretrain tokens is 450, recorded is 900"),
        ("pretrain extra", 1, "another recipe: pretrain extra is 1, recorded is None"),
        (
            "draft step_weights",
            [1.0, 1.0],
            "another recipe: draft step_weights is [1.0, 1.0], recorded is [1.0, 0.8]",
        ),
        ("pretrain heldout loss", 1.7356 + 0.021, "not the same model: held-out loss beyond tolerance"),
        ("pretrain heldout loss", 1.7356 - 0.021, "not the same model: held-out loss beyond tolerance"),
        ("pretrain heldout loss", math.nan, "not the same model: held-out loss beyond tolerance"),
        (
            "draft acceptance all accepted",
            [0.6549, 0.4540],
            "not the same model: accepted at 1, accepted at 2 beyond tolerance",
        ),
        ("draft acceptance all accepted", [0.66], "not the same model: accepted at 2 beyond tolerance"),
        (
            "draft acceptance all accepted",
            [0.66, 0.4485, 0.3],
            "not the same model: accepted at 3 beyond tolerance",
        ),
    ],
)
def test_what_may_not(
    run: Run, path: str, value: object, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(changed(path, value)) == 1
    assert capsys.readouterr().out.splitlines()[-1] == line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("not JSON", "cannot read"),
        ("[]", "is no record"),
        (json.dumps({key: value for key, value in RECORD.items() if key != "draft"}), "it has no 'draft'"),
        (json.dumps(changed("draft acceptance all accepted", 5)), "is no record"),
        (json.dumps(changed("draft acceptance all accepted", ["a", "b"])), "is no record"),
        (json.dumps(changed("pretrain heldout loss", None)), "is no record"),
    ],
)
def test_no_record(
    tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "training.json").write_text(content)
    assert main(["compare", "--model", str(tmp_path), "--recorded", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gb10: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_the_recorded_model_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "training.json").write_text(json.dumps(RECORD))
    monkeypatch.delenv("GB10_TESTBED", raising=False)
    assert main(["compare", "--model", str(tmp_path)]) == 2
    assert "--recorded" in capsys.readouterr().err
    monkeypatch.setenv("GB10_TESTBED", "")
    assert main(["compare", "--model", str(tmp_path)]) == 2
    assert "--recorded" in capsys.readouterr().err
    monkeypatch.setenv("GB10_TESTBED", str(tmp_path))
    assert main(["compare", "--model", str(tmp_path)]) == 0
