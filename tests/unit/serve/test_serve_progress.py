"""Stages in vLLM's log, and how progress is drawn."""

import fcntl
import io
import os
import struct
import termios

import pytest

from gb10.serve.progress import Progress, stage_of, write
from gb10.serve.starts import Estimate, Start

API = "(APIServer pid=1) INFO 11-22 14:36:19 [x.py:1] "


@pytest.mark.parametrize(
    ("line", "stage"),
    [
        (API + "non-default args: {'port': 1}", "reading the model's configuration"),
        ("(EngineCore pid=2) INFO 1 [c.py:1] Initializing a V1 LLM engine (v0.32.0)", "starting the engine"),
        (
            "(Worker pid=3) INFO 1 [p.py:9] world_size=2 rank=1 local_rank=0 dist",
            "waiting for the other ranks",
        ),
        ("(Worker pid=3) INFO 1 [p.py:9] world_size=1 rank=0 local_rank=0 dist", None),
        ("gb10: this node has joined the others", "waiting for the head"),
        ("(Worker pid=3) INFO 1 [m.py:68] Starting to load model /m...", "loading weights"),
        ("Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00]", "loading weights 50 %"),
        ("Capturing CUDA graphs (decode, FULL):  29%|##9  | 10/35", "capturing CUDA graphs 29 %"),
        ("gb10: the server opens", "opening the API"),
        ("gb10: the canary asks the model for its first tokens", "computing the first token"),
        ("gb10: canary: 14 tokens in 0.3 s: the model answers", "waiting for the first answer"),
        ("no line of ours: gb10: canary: x", None),
        ("nothing of note", None),
    ],
)
def test_stage_of(line: str, stage: str | None) -> None:
    assert stage_of(line) == stage


@pytest.fixture(autouse=True)
def no_dumb_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_output_is_a_line_per_stage() -> None:
    out = io.StringIO()
    show = Progress(out)
    shards = "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00]"
    for line in ("", "x Starting to load model", "y", shards, "Loading weights took 1 s"):
        show.feed(line)
        show.beat()
        show.beat()
    stages = [line.split(", ", 1)[1] for line in out.getvalue().splitlines()]
    assert stages == ["starting Python and vLLM", "loading weights", "preparing weights"]


@pytest.mark.parametrize("news", [True, False])
def test_what_requantisation_cost_is_shown(news: bool) -> None:
    out = io.StringIO()
    show = Progress(out, news=news)
    told = ["requantised 85 matrices: 2.7 GiB to 1.3 GiB, error 2.61%", "lm_head kept in 16 bit: it is tied"]
    for text in (told[0], "  qkv_proj [9216, 2048] fp8 12 x, error 2.61%", told[1]):
        show.feed(f"(Worker pid=2) INFO 1 [report.py:101] gb10: {text}")
    assert out.getvalue().splitlines() == (told if news else [])


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


def test_a_reader_that_is_gone_does_not_matter() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as out:
        for _ in range(3):
            write("text\n", out)


@pytest.mark.parametrize("columns", [30, 44, 12])
def test_a_narrow_terminal_is_not_wrapped(columns: int) -> None:
    """A line as wide as the terminal is two, and each drawing would leave one behind."""
    ours, theirs = os.openpty()
    size = struct.pack("HHHH", 24, columns, 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    with os.fdopen(theirs, "w") as out, os.fdopen(ours, "rb") as terminal:
        show = Progress(out)
        show.stage = "reading the model's configuration"
        show.beat()
        # It was made narrower meanwhile.
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns - 4, 0, 0))
        show.clear()
        drawn = os.read(terminal.fileno(), 4096).decode()
    first, *rest = drawn.lstrip("\r").split("\r")
    assert len(first) == columns - 1
    assert first.startswith(("|", "/", "-", "\\"))
    assert "\n" not in drawn
    assert all(len(line) <= columns - 5 for line in rest)


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    show = Progress(out)
    show.beat()
    show.clear()
    assert out.getvalue() == "loading: 0 s, starting Python and vLLM\n"


def test_the_estimate_is_shown() -> None:
    out = io.StringIO()
    show = Progress(out, interval=0)
    show.first = True
    show.beat()
    show.expected = Estimate([Start({"starting Python and vLLM": 18.0}, cold=False)])
    show.beat()
    assert out.getvalue().splitlines() == [
        "loading: 0 s, starting Python and vLLM (first start here: no estimate)",
        "loading: 0 s of about 18 s, starting Python and vLLM",
    ]
