"""What earlier starts say of one that runs, and the file that keeps them."""

import json
import os
from pathlib import Path

import pytest

from gb10.serve import starts
from gb10.serve.progress import Progress, summary
from gb10.serve.starts import Estimate, Start, Starts

STAGES = {"starting Python and vLLM": 6.0, "loading weights": 8.0, "opening the API": 4.0}


def estimate(*factors: float) -> Estimate:
    return Estimate([Start({stage: t * by for stage, t in STAGES.items()}, cold=False) for by in factors])


@pytest.mark.parametrize(
    ("seconds", "stage", "within", "percent", "words"),
    [
        (2, "starting Python and vLLM", 2, None, "2 s of about 18 s"),
        # Each stage that was slower or faster than before moves the end.
        (10, "loading weights", 0, None, "10 s of about 22 s"),
        (3, "loading weights", 0, None, "3 s of about 15 s"),
        (9, "loading weights", 3, None, "9 s of about 18 s"),
        # A quarter took 6 s, so the rest takes 18.
        (12, "loading weights", 6, 25, "12 s of about 34 s"),
        (12, "loading weights", 6, 2, "12 s of about 18 s"),
        (17, "loading weights", 11, None, "17 s of about 21 s"),
        (5, "compiling", 1, None, "5 s of about 18 s"),
        (18, "opening the API", 4, None, "18 s of about 18 s"),
        (19, "opening the API", 5, None, "19 s, longer than before (18 s)"),
    ],
)
def test_estimate(seconds: float, stage: str, within: float, percent: int | None, words: str) -> None:
    assert estimate(1).words(seconds, stage, within, percent) == words


def test_the_median_counts() -> None:
    assert estimate(0.9, 1, 1.1).words(0, "starting Python and vLLM", 0) == "0 s of about 18 s"


def test_starts_far_apart_are_a_range() -> None:
    far = estimate(1, 1, 2)
    assert far.words(3, "starting Python and vLLM", 3) == "3 s of 18 to 36 s"
    assert far.words(20, "opening the API", 0) == "20 s of 20 to 36 s"
    assert far.words(37, "opening the API", 0) == "37 s, longer than before (36 s)"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Starts:
    monkeypatch.setattr(starts, "boot", lambda: "one")
    return Starts(tmp_path, "thing")


def words(kept: Starts) -> str | None:
    found = kept.estimate()
    return found.words(0, "", 0) if found else None


def test_a_start_is_known_to_the_next_one(kept: Starts, tmp_path: Path) -> None:
    assert kept.estimate() is None
    kept.add(STAGES)
    assert words(Starts(tmp_path, "thing")) == "0 s of about 18 s"
    assert Starts(tmp_path, "another").estimate() is None
    assert [path.name for path in tmp_path.iterdir()] == [starts.FILE]


def test_the_first_start_of_a_boot_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    for boot, by in (("one", 4), ("one", 1), ("one", 1), ("two", 4), ("two", 1), ("three", 1)):
        monkeypatch.setattr(starts, "boot", lambda boot=boot: boot)
        kept = Starts(tmp_path, "thing")
        said.append(words(kept))
        kept.add({stage: seconds * by for stage, seconds in STAGES.items()})
    # The second has only the cold one to go by.
    assert said == [None, *(f"0 s of about {seconds} s" for seconds in (72, 18, 72, 18, 72))]


def test_what_is_kept_is_bounded(kept: Starts, tmp_path: Path) -> None:
    for number in range(60):
        Starts(tmp_path, f"thing {number}").add(STAGES)
    for seconds in range(20):
        Starts(tmp_path, "thing 30").add({"loading weights": float(seconds)})
    things = json.loads((tmp_path / starts.FILE).read_text())["things"]
    assert list(things) == [f"thing {number}" for number in (*range(20, 30), *range(31, 60), 30)]
    # That after the boot, and five more.
    assert [start["stages"].get("loading weights") for start in things["thing 30"]] == [8, 15, 16, 17, 18, 19]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        '{"schema": 1, "things": []}',
        '{"schema": 1, "things": {"thing": 1}}',
        '{"schema": 1, "things": {"thing": [1, {}, {"boot": "", "cold": true, "stages": {}}]}}',
        '{"schema": 1, "things": {"thing": [{"boot": "", "cold": true, "stages": {"a": "1"}}]}}',
        '{"schema": 1, "things": {"thing": [{"boot": "", "cold": true, "stages": {"a": NaN}}]}}',
        "x" * (1 << 21),
    ],
)
def test_a_damaged_file_is_replaced(kept: Starts, tmp_path: Path, content: str) -> None:
    (tmp_path / starts.FILE).write_text(content)
    assert kept.estimate() is None
    kept.add(STAGES)
    assert words(kept) == "0 s of about 18 s"


def test_a_file_of_another_version_is_left_alone(kept: Starts, tmp_path: Path) -> None:
    text = '{"schema": 2, "things": {"thing": []}}'
    (tmp_path / starts.FILE).write_text(text)
    assert kept.estimate() is None
    kept.add(STAGES)
    assert (tmp_path / starts.FILE).read_text() == text


def test_a_file_of_another_user_is_left_alone(
    kept: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.add(STAGES)
    before = (tmp_path / starts.FILE).read_bytes()
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert kept.estimate() is None
    kept.add(STAGES)
    assert (tmp_path / starts.FILE).read_bytes() == before


def test_no_place_is_no_estimate(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / starts.FILE)
    for folder in (None, tmp_path / "file", tmp_path / "pipe", Path("/proc/nothing")):
        kept = Starts(folder, "thing")
        kept.add(STAGES)
        assert kept.estimate() is None


def test_the_stages_have_their_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    show = Progress()
    for line, seconds in (
        ("", 6.0),
        ("Starting to load model", 1.0),
        ("Loading safetensors checkpoint shards:  40% Completed | 1/2", 2.0),
        ("Loading weights took", 0.5),
        ("Starting to load model", 4.0),
    ):
        show.feed(line)
        now += seconds
    assert show.stages == {"starting Python and vLLM": 6, "loading weights": 7, "preparing weights": 0.5}
    assert show.seconds == 13.5


def test_summary() -> None:
    stages = {**STAGES, "making the KV cache": 0.01, "computing the first token": 12.34}
    text = summary(stages)
    assert text.split("\n") == [
        "stages: starting Python and vLLM 6.0 s, loading weights 8.0 s, opening the API",
        "        4.0 s, computing the first token 12 s",
    ]
    assert all(len(line) <= 40 for line in summary(stages, 40).split("\n"))
