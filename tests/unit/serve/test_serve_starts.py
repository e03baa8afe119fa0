"""Earlier starts: what is kept of them, and what they say about the next one."""

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gb10.serve import starts
from gb10.serve.progress import Progress

FIRST = {"starting": 7.0, "loading weights": 3.0, "compiling": 40.0, "waiting": 1.0}
SECOND = {"starting": 6.0, "loading weights": 2.0, "waiting": 1.0}


def plan(*arguments: str, folder: str = "/m", target: str = "CPU") -> Any:
    checkpoint = SimpleNamespace(folder=Path(folder))
    return SimpleNamespace(checkpoint=checkpoint, target=target, arguments=arguments)


def test_what_remains_is_what_earlier_starts_took_from_the_stage_on() -> None:
    assert starts.estimate([SECOND], "loading weights", 8.0) == starts.Estimate(11.0, 11.0, 11.0)
    assert starts.estimate([FIRST, SECOND], "waiting", 9.0) == starts.Estimate(10.0, 10.0, 10.0)
    assert starts.estimate([FIRST, SECOND], "starting", 0.0) == starts.Estimate(9.0, 30.0, 51.0)
    assert starts.estimate([FIRST, SECOND], "compiling", 10.0) == starts.Estimate(51.0, 51.0, 51.0)
    assert starts.estimate([FIRST], "another", 1.0) is None
    assert starts.estimate([], "starting", 0.0) is None


@pytest.mark.parametrize(
    ("times", "seconds", "words"),
    [
        ((18, 18, 18), 12.0, "12 s of about 18 s"),
        ((17, 18, 20), 12.0, "12 s of about 18 s"),
        ((9, 30, 51), 12.0, "12 s of 9 to 51 s"),
        ((17, 18, 20), 21.0, "21 s, 20 s before"),
    ],
)
def test_an_estimate_in_words(times: tuple[float, float, float], seconds: float, words: str) -> None:
    assert starts.Estimate(*times).words(seconds) == words


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "gb10" / "starts.json"
    for seconds in range(9):
        starts.keep(file, "a", {"starting": seconds + 0.123456, "waiting": 1.0})
    starts.keep(file, "b", SECOND)
    assert [one["starting"] for one in starts.earlier(file, "a")] == [4.12, 5.12, 6.12, 7.12, 8.12]
    assert starts.earlier(file, "b") == [SECOND]
    assert list(starts.earlier(file, "b")[0]) == list(SECOND)
    assert starts.earlier(file, "c") == []


def test_the_servers_that_were_not_started_for_long_are_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "starts.json"
    for number in range(starts.KEPT_SERVERS):
        starts.keep(file, str(number), SECOND)
    starts.keep(file, "0", SECOND)
    starts.keep(file, "new", SECOND)
    kept = json.loads(file.read_text())["starts"]
    assert len(kept) == starts.KEPT_SERVERS
    assert list(kept)[-2:] == ["0", "new"] and "1" not in kept


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"schema": 2, "starts": {"a": [{"starting": 1}]}}',
        '{"schema": 1}',
        '{"schema": 1, "starts": []}',
        '{"schema": 1, "starts": {"a": [{"starting": "soon"}]}}',
        '{"schema": 1, "starts": {"a": {"starting": 1}}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "starts.json"
    file.write_text(text)
    assert starts.earlier(file, "a") == []
    starts.keep(file, "a", SECOND)
    assert starts.earlier(file, "a") == [SECOND]


def test_what_is_no_file_and_what_cannot_be_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "starts.json")
    assert starts.earlier(tmp_path / "starts.json", "a") == []
    starts.keep(tmp_path / "starts.json", "a", SECOND)
    (tmp_path / "file").touch()
    starts.keep(tmp_path / "file" / "starts.json", "a", SECOND)
    starts.keep(None, "a", SECOND)
    assert starts.earlier(None, "a") == []
    assert {path.name for path in tmp_path.iterdir()} == {"starts.json", "file"}


def test_where_they_are(tmp_path: Path) -> None:
    assert starts.place({"XDG_STATE_HOME": str(tmp_path)}) == tmp_path / "gb10" / "starts.json"


def test_what_two_starts_must_have_alike() -> None:
    key = starts.key_of(plan("/m", "--max-model-len", "2048", "--port", "1"))
    assert key == starts.key_of(plan("/m", "--max-model-len", "2048", "--port", "2"))
    assert key == starts.key_of(plan("/m", "--max-model-len", "2048", "--port=2"))
    others = [
        plan("/m", "--max-model-len", "4096"),
        plan("/m", "--max-model-len", "2048", folder="/n"),
        plan("/m", "--max-model-len", "2048", target="GPU"),
    ]
    assert key not in {starts.key_of(one) for one in others}


def test_progress_says_of_how_many_seconds() -> None:
    out = io.StringIO()
    show = Progress(out, earlier=[{"starting Python and vLLM": 6.0, "loading weights": 2.0, "waiting": 1.0}])
    show.beat()
    show.feed("x Starting to load model")
    show.beat()
    show.enter("another stage")
    show.beat()
    assert out.getvalue().splitlines() == [
        "loading: 0 s of about 9 s, starting Python and vLLM",
        "loading: 0 s of about 3 s, loading weights",
        "loading: 0 s, another stage",
    ]


def test_stages_are_timed_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("gb10.serve.progress.time.monotonic", lambda: now[0])
    show = Progress(io.StringIO(), interval=0, _began=100.0)
    for seconds, line in (
        (7.25, "x Starting to load model"),
        (1, "Loading safetensors checkpoint shards:  50% Completed"),
        (12.5, "Loading safetensors checkpoint shards:  100% Completed"),
        (2, "Loading weights took 3 s"),
        (0.2, "x Starting to load model"),
        (1, "init engine (profile) took 1 s"),
    ):
        now[0] += seconds
        show.feed(line)
    now[0] += 0.4
    assert show.stages == pytest.approx(
        {
            "starting Python and vLLM": 7.25,
            "loading weights": 16.5,
            "preparing weights": 0.2,
            "opening the API": 0.4,
        }
    )
    assert show.told() == "stages  starting Python and vLLM 7.2 s, loading weights 16 s"
    assert sum(show.stages.values()) == pytest.approx(show.seconds)


def test_stages_fit_the_terminal() -> None:
    show = Progress(io.StringIO())
    show._took = {f"stage number {at}": 1.0 for at in range(12)}
    lines = show.told().splitlines()
    assert len(lines) > 2 and max(map(len, lines)) <= 80
    assert all(line.startswith(" " * 8) for line in lines[1:])
