"""Verdicts, and what is not compared."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import point, result, with_drafts

from gb10 import cli
from gb10.bench import compare
from gb10.bench.results import Result


def verdict(first: Result, second: Result, place: str = "prose", figure: str = "decode") -> str:
    found = [row for row in compare.rows(first, second) if (row.point, row.figure.name) == (place, figure)]
    assert len(found) == 1
    return found[0].verdict


@pytest.mark.parametrize(
    ("factor", "words"),
    [(1.3, "B is faster"), (1.05, "no difference"), (0.95, "no difference"), (0.7, "A is faster")],
)
def test_decode_is_judged_beyond_ten_percent(factor: float, words: str) -> None:
    second = result([rate * factor for rate in (50.0, 51.0, 49.0, 50.5, 50.0)])
    assert words in verdict(result(), second)
    assert words in verdict(result(), second, "mixed x 4", "throughput")


@pytest.mark.parametrize(("first", "words"), [(0.38, "B is faster"), (0.44, "no difference"), (0.65, "A is")])
def test_prefill_is_judged_beyond_twenty_percent(first: float, words: str) -> None:
    assert words in verdict(result(), result(long_first=first), "long", "prefill")


def test_a_shorter_time_is_better() -> None:
    assert verdict(result(first=0.2), result(first=0.1), figure="ttft") == "B is faster"
    assert verdict(result(first=0.1), result(first=0.2), figure="ttft") == "A is faster"


def test_a_wide_spread_is_noise() -> None:
    wide = [40.0, 45.0, 50.0, 60.0, 70.0]
    assert "no difference" in verdict(result(wide), result([rate * 1.3 for rate in wide]))
    assert verdict(result([50.0] * 5), result([65.0] * 5)) == "B is faster"


def test_few_repeats_give_no_verdict() -> None:
    assert verdict(result([50.0] * 4), result([90.0] * 5)) == "too few repeats"


def test_two_runs_of_one_server_rarely_differ() -> None:
    """Of noise of 8 %, twice the same: the verdict is wrong in few of 300 cases."""
    draw = random.Random(7)
    wrong = 0
    for _ in range(300):
        first, second = (result([draw.gauss(50, 4) for _ in range(5)]) for _ in range(2))
        wrong += "no difference" not in verdict(first, second)
    assert wrong <= 9


def settings(made: Result, **changes: Any) -> Result:
    return replace(made, settings={**made.settings, **changes})


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (settings(result(), output_tokens=64), "output_tokens is 33 in A and 64 in B"),
        (settings(result(), battery="other"), "battery is"),
        (settings(result(), texts=["prose"]), "texts is prose long in A and prose in B"),
        (settings(result(), api="chat"), "api is completions in A and chat in B"),
        (settings(result(), more=1), "more is None in A and 1 in B"),
        (replace(result(), points=result().points[:2]), "different points"),
        (replace(result(), points=result().points[:2] + result().points[:1]), "different points: mixed x 4"),
        (result(tokens=110), "prose is 100 tokens in A and 110 in B"),
    ],
)
def test_what_differs_in_how_it_was_measured_is_refused(
    second: Result, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, made in zip(files, (result(), second), strict=True):
        file.write_text(json.dumps(made.as_json()))
    assert cli.main(["bench", "compare", *map(str, files)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1 and words in printed.err


def test_nonces_of_another_length_are_the_same_input() -> None:
    assert verdict(result(tokens=100), result(tokens=102)) == "no difference beyond the noise"


def test_the_table_fits_a_terminal_and_says_what_else_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = result([90.0, 91.0, 92.0, 91.0, 91.0])
    machine = {**other.about["machine"], "gpu": None}
    other = replace(other, about={**other.about, "model": "another", "machine": machine})
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, made in zip(files, (result(), other), strict=True):
        file.write_text(json.dumps(made.as_json()))
    assert cli.main(["bench", "compare", *map(str, files)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "two models: A made-up, B another" in text
    assert "two machines" in text
    row = next(line for line in lines if line.startswith("prose") and "decode" in line)
    assert "50" in row and "91" in row and "1.82" in row and row.endswith("B is faster")


def test_points_of_one_file_are_the_same_in_another_order() -> None:
    first = result()
    second = replace(first, points=tuple(reversed(first.points)))
    assert {row.verdict for row in compare.rows(first, second)} == {"no difference beyond the noise"}
    assert point("prose", 1, [1.0]).label == "prose"


NASTY = "\x1b]0;owned\x07\x1b[2J<script>\u202e\rA"


def test_nothing_of_a_file_steers_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = result()
    about = {
        **made.about,
        "model": NASTY,
        "server": NASTY,
        "machine": {"gpu": {"gpus": [NASTY]}, "cpu": NASTY},
    }
    points = tuple(replace(one, text=f"{NASTY}{one.text}$x^") for one in made.points)
    files = []
    for number, one in enumerate((Result(made.settings, about, points), Result(made.settings, {}, points))):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(one.as_json()))
    other = tmp_path / "other.json"
    other.write_text(json.dumps(Result({**made.settings, "api": NASTY}, about, points).as_json()))
    html = tmp_path / "a.html"
    assert cli.main(["bench", "compare", str(files[0]), str(files[1])]) == 0
    assert cli.main(["bench", "report", str(files[0]), "--html", str(html)]) == 0
    assert cli.main(["bench", "compare", str(files[0]), str(other)]) == 2
    printed = capsys.readouterr()
    assert "<script>" in printed.out and "?[2J" in printed.err
    page = html.read_text()
    for text in (printed.out, printed.err, page):
        assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert "<script" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("place", "value"),
    [("machine", "x"), ("machine", {"gpu": "x"}), ("power", {"watts": "x"}), ("drafts", {"drafts": "x"})],
)
def test_a_file_with_words_for_numbers_is_damaged(
    place: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(json.dumps(with_drafts(result()).as_json()))
    if place == "machine":
        content["about"]["machine"] = value
    else:
        content["points"][0]["repeats"][0][place] |= value
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    assert cli.main(["bench", "report", str(file)]) == 2
    err = capsys.readouterr().err
    assert f"{file} is damaged" in err and err.count("\n") == 1
