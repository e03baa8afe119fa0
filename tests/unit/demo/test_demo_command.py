"""`python -m gb10.demo` as a user types it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gb10.demo.__main__ import main


def run(*arguments: str, **options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gb10.demo", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | options
    )


def assert_one_error_line(errors: str, *parts: str) -> None:
    assert errors.startswith("gb10: error: ")
    assert errors.count("\n") == 1
    assert errors.endswith("\n")
    for part in parts:
        assert part in errors


def test_success_is_silent_and_needs_neither_vllm_nor_transformers(tmp_path: Path) -> None:
    # -X importtime names every imported module on stderr.
    done = run("--out", str(tmp_path / "demo"), PYTHONPROFILEIMPORTTIME="1")
    assert (done.returncode, done.stdout) == (0, "")
    imported = {
        line.rpartition("|")[2].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert all(line.startswith("import time:") for line in done.stderr.splitlines())
    assert {"torch", "tokenizers", "safetensors"} <= imported
    assert not imported & {"vllm", "transformers", "huggingface_hub", "requests", "httpx"}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ("--out", "--help")),
        (("--out", "x", "--arch", "llama"), ("llama", "qwen3_moe", "qwen3_next")),
        (("--out", "x", "--seed", "-1"), ("--seed",)),
        (("--out", "x", "--seed", "1.5"), ("'1.5'", "whole number")),
        (("--out", "x", "more"), ("more",)),
        (("--out", ""), ("",)),
    ],
)
def test_bad_arguments(
    arguments: tuple[str, ...],
    parts: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").touch()
    assert main(arguments) == 2
    assert_one_error_line(capsys.readouterr().err, *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_an_error_is_one_line_with_exit_code_2_in_a_real_process(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path), "--arch", "gpt")
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_error_line(done.stderr, "gpt")


def test_a_folder_with_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("dear")
    assert main(["--out", str(tmp_path)]) == 2
    assert_one_error_line(capsys.readouterr().err, str(tmp_path), "not an empty folder")
    assert (tmp_path / "mine").read_text() == "dear"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_file_or_a_dangling_link_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        assert main(["--out", str(tmp_path / name)]) == 2
        assert_one_error_line(capsys.readouterr().err, name, "not an empty folder")
    assert main(["--out", str(tmp_path / "file" / "demo")]) == 2
    assert_one_error_line(capsys.readouterr().err, "cannot write to", "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert main(["--out", str(tmp_path / "demo")]) == 2
    assert_one_error_line(capsys.readouterr().err, "Permission denied", "--out")
    tmp_path.chmod(0o700)


def test_a_read_only_file_system(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", "/proc/gb10-demo"]) == 2
    assert_one_error_line(capsys.readouterr().err, "/proc", "--out")


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for option in ("--out", "--arch", "--seed"):
        assert option in text
