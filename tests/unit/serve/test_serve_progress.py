"""Stages and errors in vLLM's log, and how progress is drawn."""

import io

import pytest

from gb10.serve.progress import Progress, last_error, last_line, stage_of

API = "(APIServer pid=1) INFO 11-22 14:36:19 [x.py:1] "
CORE = "(EngineCore pid=2) ERROR 11-22 14:36:19 [core.py:9] "


@pytest.mark.parametrize(
    ("line", "stage"),
    [
        (API + "non-default args: {'port': 1}", "reading the model's configuration"),
        ("(EngineCore pid=2) INFO 1 [c.py:1] Initializing a V1 LLM engine (v0.32.0)", "starting the engine"),
        ("(Worker pid=3) INFO 1 [m.py:68] Starting to load model /m...", "loading weights"),
        ("Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00]", "loading weights 50 %"),
        ("Capturing CUDA graphs (decode, FULL):  29%|##9  | 10/35", "capturing CUDA graphs 29 %"),
        (API + "Starting vLLM server on http://127.0.0.1:1", "waiting for the first answer"),
        ("nothing of note", None),
    ],
)
def test_stage_of(line: str, stage: str | None) -> None:
    assert stage_of(line) == stage


def test_last_error_is_the_cause_not_its_consequence() -> None:
    lines = [
        CORE + "EngineCore failed to start.",
        CORE + "Traceback (most recent call last):",
        CORE + '  File "x.py", line 1, in f',
        CORE + "ValueError: KV cache is too small",
        "Traceback (most recent call last):",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        API + "Application shutdown complete.",
    ]
    assert last_error(lines) == "ValueError: KV cache is too small"


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["api_server.py: error: unrecognized arguments: --nope"], "unrecognized arguments: --nope"),
        (["torch.OutOfMemoryError: CUDA out of memory."], "OutOfMemoryError: CUDA out of memory."),
        (
            [
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
                "  Value error, max_model_len is too long. [type=value_error, input_value=Args()]",
                "    For further information visit https://errors.pydantic.dev/",
            ],
            "ValidationError: 1 validation error for ModelConfig Value error, max_model_len is too long.",
        ),
        (["RuntimeError:", "  the cause"], "RuntimeError: the cause"),
        (["ValueError: " + "word " * 100], "ValueError: " + "word " * 68 + "..."),
        (["all is well"], None),
    ],
)
def test_last_error_kinds(lines: list[str], error: str | None) -> None:
    assert last_error(lines) == error


def test_last_line_has_words_and_no_prefix() -> None:
    assert last_line([API + "the end", "-----", ""]) == "the end"
    assert last_line([]) is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_output_is_a_line_per_stage() -> None:
    out = io.StringIO()
    show = Progress(out)
    for line in ("", "x Starting to load model", "y", "Loading weights took 1 s"):
        show.feed(line)
        show.beat()
        show.beat()
    stages = [line.split(", ", 1)[1] for line in out.getvalue().splitlines()]
    assert stages == ["starting Python and vLLM", "loading weights", "preparing weights"]


def test_plain_output_beats_at_the_interval() -> None:
    out = io.StringIO()
    show = Progress(out, interval=0)
    show.beat()
    show.beat()
    assert len(out.getvalue().splitlines()) == 2


def test_terminal_output_is_one_line_that_is_removed() -> None:
    out = Terminal()
    show = Progress(out)
    show.beat()
    show.beat()
    show.clear()
    text = out.getvalue()
    assert text.count("starting Python and vLLM") == 1
    assert "\n" not in text
    assert text.endswith("\r")
    assert text.split("\r")[-2].strip() == ""
