"""pydantic's errors name the option, the field and the value; vLLM's own are one line."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm.version", reason="vLLM is not installed")

from gb10.errors import UserError
from gb10.serve import launch, validation

Make = Callable[..., Path]
MODEL = {"vocab_size": 8, "intermediate_size": 64}


def refused(folder: Path, *arguments: str, configure: bool = True) -> str:
    line = ["--model", str(folder), "--skip-tokenizer-init", "--load-format", "dummy", *arguments]
    with pytest.raises(UserError) as caught:
        launch.prepare(line, configure=configure)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--speculative-config", '{"method":"ngram","num_speculative_tokens":-1}'],
            "refuses this: --speculative-config num_speculative_tokens=-1: should be greater than 0",
        ),
        (
            ["-sc.num_speculative_tokens=-1", "-sc.method=ngram"],
            "--speculative-config num_speculative_tokens=-1: should be greater than 0",
        ),
        (
            ["--speculative-config", '{"method":"nope","num_speculative_tokens":1}'],
            "--speculative-config method='nope': should be 'ngram'",
        ),
        (
            ["--speculative-config", '{"method":"ngram","num_speculative_tokens":1,"foo":2}'],
            "--speculative-config foo=2: Unexpected keyword argument",
        ),
        (
            ["--max-num-batched-tokens", "0"],
            "this: --max-num-batched-tokens 0: should be greater than or equal",
        ),
        (["--max-num-seqs", "-4"], "this: --max-num-seqs -4: should be greater than or equal to 1"),
        (
            ["--gpu-memory-utilization", "3"],
            "--gpu-memory-utilization 3.0: should be less than or equal to 1",
        ),
        (["--hf-overrides", "{1"], "--hf-overrides '{1': should be a valid dictionary or should be callable"),
        (["-cc", '{"mode":77}'], "vLLM's arguments: --compilation-config mode=77: should be 0, 1, 2 or 3"),
        (["-cc.mode=abc"], "--compilation-config mode='abc': Invalid compilation mode: abc."),
        (["--kv-transfer-config", '{"kv_role":"x"}'], "--kv-transfer-config kv_role='x': should be "),
        (["--pooler-config", '{"pooling_type":"x"}'], "--pooler-config pooling_type='x': should be 'CLS'"),
        (["--max-num-seqs", "x"], "--max-num-seqs: invalid int value: 'x'"),
    ],
)
def test_what_pydantic_says(make_checkpoint: Make, arguments: Sequence[str], said: str) -> None:
    assert said in refused(make_checkpoint(config=MODEL), *arguments)


def test_what_was_derived_is_left_out(make_checkpoint: Make) -> None:
    """--max-num-seqs follows --max-num-batched-tokens, and both are 0 then."""
    text = refused(make_checkpoint(config=MODEL), "--max-num-batched-tokens", "0")
    assert "max-num-seqs" not in text
    assert text.count("should") == 1


def test_a_context_past_the_models(make_checkpoint: Make) -> None:
    assert refused(make_checkpoint(config=MODEL), "--max-model-len", "999999") == (
        "--max-model-len 999999 is more than the 2048 tokens of the model; give at most 2048, or leave it "
        "out (VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 allows it; past its limit a model may write noise)"
    )
    longer = make_checkpoint("longer", config={**MODEL, "model_max_length": 4096})
    assert "more than the 4096 tokens" in refused(longer, "--max-model-len", "5000")


class Wrong(Exception):
    """As pydantic's, of a class that has an option or not."""

    def __init__(self, title: str, *details: tuple[tuple[str | int, ...], Any]) -> None:
        self.title = title
        self._details = details

    def errors(self) -> list[dict[str, Any]]:
        return [{"loc": loc, "input": value, "msg": "Value error, no"} for loc, value in self._details]


@pytest.mark.parametrize(
    ("title", "loc", "value", "text"),
    [
        ("KVTransferConfig", ("a", "b", 3, "int", "list[str]"), "v", "--kv-transfer-config a.b.3='v': no"),
        ("KVTransferConfig", (), {"a": 1}, "--kv-transfer-config: no"),
        ("CacheConfig", ("block_size",), 7, "--block-size 7: no"),
        ("CacheConfig", ("cache_dtype",), "fp9", "CacheConfig.cache_dtype 'fp9': no"),
        ("CacheConfig", (), {}, "no"),
        ("CacheConfig", ("hf_token",), "s3cret", "--hf-token: no"),
        ("CacheConfig", ("block_size",), "x" * 500, f"--block-size '{'x' * 76}...: no"),
    ],
)
def test_names(title: str, loc: tuple[str | int, ...], value: object, text: str) -> None:
    options = ["--kv-transfer-config", "--block-size", "--hf-token"]
    error = validation.find(Wrong(title, (loc, value)))
    assert error is not None
    assert validation.told(error, options) == text
    assert validation.find(ValueError("x")) is None
    assert validation.find(None) is None


def fifo(path: Path) -> str:
    os.mkfifo(path)
    return str(path)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--chat-template", "--chat-template"),
        ("--ssl-keyfile", "--ssl-keyfile"),
        ("--tool-parser-plugin", "--tool-parser-plugin"),
        ("--hf-config-path", "--hf-config-path"),
        ("--tokenizer", "--tokenizer"),
        ("-sc.model", "--speculative-config.model"),
    ],
)
def test_an_option_that_names_a_pipe(make_checkpoint: Make, tmp_path: Path, option: str, name: str) -> None:
    path = fifo(tmp_path / "p")
    text = refused(make_checkpoint(), option, path, configure=False)
    assert text == f"{name} {path} is a named pipe (FIFO), not a file; give a file"


@pytest.mark.parametrize("option", ["--tokenizer", "--hf-config-path", "-sc.model"])
def test_an_option_that_names_a_folder_with_a_pipe(
    make_checkpoint: Make, tmp_path: Path, option: str
) -> None:
    folder = make_checkpoint("other")
    fifo(folder / "vocab.json")
    text = refused(make_checkpoint(), option, str(folder), configure=False)
    assert text.startswith(f"{folder / 'vocab.json'} is a named pipe (FIFO), not a file; ")


def test_options_that_name_files_and_texts(make_checkpoint: Make, tmp_path: Path) -> None:
    """A template may be a text: with line ends, longer than a path, or the name of a folder with anything."""
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages }}")
    fifo(tmp_path / "p")
    folder = str(make_checkpoint())
    for text in (str(template), "{{ messages }}\n" * 1000, "{{ m }}\n"):
        launch.prepare(["--model", folder, "--chat-template", text], configure=False)
    launch.prepare(["--model", folder, "--download-dir", str(tmp_path)], configure=False)


def test_a_config_file_that_is_none(tmp_path: Path) -> None:
    for path, said in (
        (fifo(tmp_path / "c.yaml"), r"it is a named pipe \(FIFO\), not a file"),
        (str(tmp_path), "it is a folder, not a file"),
        ("/dev/zero", "it is a device, not a file"),
        (str(tmp_path / "none.yaml"), "No such file or directory"),
    ):
        with pytest.raises(UserError, match=f"^--config {path} cannot be read: {said}$"):
            launch.config_file(path)


@pytest.mark.parametrize("given", ["foo", "-3", "1-2-3", "0,x"])
def test_cpus_that_vllm_cannot_read(
    make_checkpoint: Make, clean_environment: pytest.MonkeyPatch, given: str
) -> None:
    """vLLM's executor would end over them, after the plan was printed."""
    clean_environment.setenv("VLLM_CPU_OMP_THREADS_BIND", given)
    text = refused(make_checkpoint(config=MODEL))
    assert text.startswith(f"VLLM_CPU_OMP_THREADS_BIND={given}: ")
    assert text.endswith(
        "; give numbers of CPUs such as 0-3,6, with | between those of each rank, or unset it"
    )


def test_a_message_that_was_meant_for_a_logger() -> None:
    assert launch._text(RuntimeError("No file: %s", "/nope")) == "No file: /nope"
    assert launch._text(ValueError("one", 2)) == "('one', 2)"
