"""`python -m gb10_lab quality` as a user types it."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gb10.files import write_json
from gb10_lab.cli import main
from gb10_lab.testbed import checkpoint

Run = Callable[..., int]


@pytest.fixture
def run(model_folder: Path, held_out: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run it on the small model and little text, with more arguments."""
    for name in ("GB10_TESTBED", "GB10_HELDOUT"):
        monkeypatch.delenv(name, raising=False)

    def command(*arguments: object) -> int:
        base = ("quality", "--model", model_folder, "--held-out", held_out, "--tokens", 576, "--window", 96)
        return main([str(argument) for argument in (*base, *arguments)])

    return command


def test_a_recorded_run_is_found_again(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expectation = tmp_path / "expectation.json"
    assert run("--record", expectation) == 0
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert "576 tokens of" in printed
    recorded = json.loads(expectation.read_text(encoding="utf-8"))
    assert len(recorded["rows"]) == 13
    assert recorded["tokens"] == 576
    assert run("--check", expectation) == 0
    assert f"as recorded in {expectation}" in capsys.readouterr().out


def test_a_row_that_is_off_is_a_line_and_exit_code_1(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expectation = tmp_path / "expectation.json"
    run("--record", expectation)
    content = json.loads(expectation.read_text(encoding="utf-8"))
    content["rows"]["fp8-dense"]["kl"] *= 1.01
    expectation.write_text(json.dumps(content), encoding="utf-8")
    capsys.readouterr()
    assert run("--check", expectation) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("not as recorded: fp8-dense: kl ")
    assert printed.err.count("\n") == 1
    assert "as recorded in" not in printed.out


def test_another_model_is_not_compared(
    run: Run, tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expectation = tmp_path / "expectation.json"
    run("--record", expectation)
    model = checkpoint.load(model_folder)
    model.lm_head.weight.data *= 1.25
    checkpoint.save(model, model_folder)
    capsys.readouterr()
    assert run("--check", expectation) == 1
    assert capsys.readouterr().err.startswith("not as recorded: model_sha256: ")


def test_out_has_the_plot_and_the_figures(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "new" / "folder"
    assert run("--out", out) == 0
    assert (out / "quality.json").stat().st_mode & 0o777 == 0o644
    assert sorted(file.name for file in out.iterdir()) == ["quality.json", "quality.svg"]
    assert (out / "quality.svg").read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokens", "100000"), "tokens, 100032 are wanted"),
        (("--model", "/nonexistent"), "cannot read"),
        (("--held-out", "/nonexistent"), "cannot read documents from"),
        (("--check", "/nonexistent"), "is no expectation"),
        (("--tokens", "1"), "is not a whole number of 2 or more"),
        (("--nonsense",), "No such option: --nonsense"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], message: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("gb10: error: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_a_missing_site_names_the_file_to_make_again(
    run: Run, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(model_folder / "calibration.json", {"tokens": 1, "amax": {"lm_head": 2.0}})
    assert run() == 2
    assert "calibration.json has no amax of" in capsys.readouterr().err
    write_json(model_folder / "calibration.json", [1])
    assert run() == 2
    assert "has no object 'amax'" in capsys.readouterr().err


def test_model_and_text_may_come_from_the_environment(
    model_folder: Path, held_out: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "gb10_lab", "quality", "--tokens", "192", "--window", "96"]
    command += ["--record", str(tmp_path / "expectation.json")]
    named = {"GB10_TESTBED": str(model_folder), "GB10_HELDOUT": str(held_out)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=os.environ | named
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "NVFP4 as shipped (W4A16)" in done.stdout


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "Missing option '--model' (env var: 'GB10_TESTBED')"),
        ({"GB10_TESTBED": "x"}, "Missing option '--held-out' (env var: 'GB10_HELDOUT')"),
    ],
)
def test_model_and_text_must_come_from_somewhere(
    given: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("GB10_TESTBED", "GB10_HELDOUT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["quality"]) == 2
    assert capsys.readouterr().err.startswith(f"gb10: error: {message}")


def test_a_plot_that_cannot_be_drawn_is_told_before_the_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run("--out", tmp_path / "new") == 2
    said = capsys.readouterr()
    assert said.err.startswith("gb10: error: the plot needs matplotlib")
    assert said.out == ""
    assert not (tmp_path / "new").exists()
