"""Bad input is one line and exit status 2, before any engine starts."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from gb10_lab.cli import main


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GB10_DEMO_MODEL", "GB10_HELDOUT", "GB10_TESTBED"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_next", "vocab_size": 100}))
    (folder / "draft_vocabulary.json").write_text(json.dumps(list(range(99, -1, -1))))
    Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(folder / "tokenizer.json"))
    (tmp_path / "text.jsonl").write_text('{"package": "p", "path": "a.rst", "text": "ab ab"}\n')
    return folder


def _error(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["speculative", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("gb10: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--draft", "0"], "'0' is not a whole number of 1 or more"),
        (["--draft", "two"], "'two' is not a whole number"),
        (["--draft", "4", "2", "0"], "'0' is not a whole number of 1 or more"),
        (["--draft-vocabulary", "full", "1/2", "half"], "--draft-vocabulary half: say full"),
        (["--draft-vocabulary", "half"], "say full, a number of tokens, or a part"),
        (["--draft-vocabulary", "3/2"], "a part is more than 0 and at most 1"),
        (["--draft-vocabulary", "1/0"], "a part is more than 0 and at most 1"),
        (["--draft-vocabulary", "101"], "101 tokens; the model has 100"),
        (["--draft-vocabulary", "1/101"], "0 tokens; the model has 100"),
        (["--engine", "{"], "is not JSON"),
        (["--engine", "[1]"], "is not a JSON object"),
        (["--samples", "-1"], "is not a whole number of 0 or more"),
        (["--draft-vocabulary", "full"], "gives 0 prompts"),
        (["--draft-ids", "/nonexistent/ids.json"], "cannot read the draft vocabulary"),
        (["--held-out", "/nonexistent/text.jsonl"], "cannot read documents from"),
        (["--model", "/nonexistent"], "is no model folder"),
        (["--surprise"], "(see: python -m gb10_lab speculative --help)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nonsense(model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    given = ["--model", model, "--held-out", model.parent / "text.jsonl"]
    assert said in _error(capsys, *given, *arguments)


def test_model_and_text_must_be_named(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Missing option '--model' (env var: 'GB10_DEMO_MODEL')" in _error(capsys)
    assert "Missing option '--held-out' (env var: 'GB10_HELDOUT')" in _error(capsys, "--model", model)


def test_ids_of_another_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "draft_vocabulary.json").write_text("[5, 100]")
    text = model.parent / "text.jsonl"
    message = _error(capsys, "--model", model, "--held-out", text)
    assert "has token id 100, but the model has 100 tokens" in message


def test_too_few_ids(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "draft_vocabulary.json").write_text("[5, 6]")
    text = model.parent / "text.jsonl"
    message = _error(capsys, "--model", model, "--held-out", text, "--draft-vocabulary", "1/2")
    assert "wants 50 token ids" in message


def test_ids_beside_the_testbed_model(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NVFP4 checkpoint has no such file; the model it was made from has."""
    testbed = model.parent / "testbed"
    testbed.mkdir()
    (model / "draft_vocabulary.json").rename(testbed / "draft_vocabulary.json")
    text = model.parent / "text.jsonl"
    assert "cannot read the draft vocabulary" in _error(capsys, "--model", model, "--held-out", text)
    monkeypatch.setenv("GB10_TESTBED", str(testbed))
    assert "gives 0 prompts" in _error(capsys, "--model", model, "--held-out", text)


def test_other_models(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "qwen3_moe", "vocab_size": 100}))
    text = model.parent / "text.jsonl"
    assert "is no Qwen3-Next model" in _error(capsys, "--model", model, "--held-out", text)
