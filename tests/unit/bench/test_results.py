"""Figures out of samples, and results that are read again."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import point, request, result, with_drafts

from gb10.bench import results
from gb10.bench.results import Drafts, Repeat, Spread, merged
from gb10.errors import UserError


def test_figures_of_a_request() -> None:
    one = request(50.0, first=0.5, tokens=1000)
    assert one.decode_rate == pytest.approx(50.0)
    assert one.prefill_rate == pytest.approx(2000.0)
    assert one.seconds == pytest.approx(0.5 + 32 / 50)


def test_throughput_counts_from_the_first_request_to_the_last_token() -> None:
    late = replace(request(50.0, first=0.5), start=6.0)
    both = Repeat((request(50.0, first=0.5), late))
    assert both.seconds == pytest.approx(1.0 + 0.5 + 0.64)
    assert both.throughput == pytest.approx(66 / 2.14)


def test_spread_is_median_and_quartiles() -> None:
    spread = Spread.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (spread.low, spread.median, spread.high, spread.count) == (2.0, 3.0, 4.0, 5)
    assert spread.relative == pytest.approx(2 / 3)
    assert Spread.of([7.0]).relative == 0
    with pytest.raises(ValueError, match="nothing"):
        Spread.of([])


def test_drafts_of_repeats_are_weighed_by_their_number() -> None:
    few, many = Drafts(10, 20, 20, (1.0, 1.0)), Drafts(30, 60, 30, (0.6, 0.4))
    made = point("prose", 1, [50.0, 50.0])
    repeats = tuple(replace(one, drafts=which) for one, which in zip(made.repeats, (few, many), strict=True))
    found = replace(made, repeats=repeats).drafts
    assert found is not None
    assert (found.drafts, found.tokens, found.accepted) == (40, 80, 50)
    assert found.by_position == pytest.approx((0.7, 0.55))
    assert found.length == pytest.approx(1 + 50 / 40)
    assert made.drafts is None


@pytest.mark.parametrize("made", [result(), with_drafts(result())])
def test_what_is_written_is_read_again(made: results.Result, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(made.as_json()))
    assert results.load(file) == made


def damaged(change: Any) -> str:
    content = json.loads(json.dumps(result().as_json()))
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot read"),
        ("[]", "is no result of gb10 bench"),
        ('{"kind": "other"}', "is no result of gb10 bench"),
        (damaged(lambda c: c.update(schema=99)), "has schema 99"),
        (damaged(lambda c: c.pop("points")), "is damaged: KeyError: 'points'"),
        (damaged(lambda c: c.update(points=[])), "it has no points"),
        (damaged(lambda c: c["points"][0].update(repeats=[])), "no repeats"),
        (damaged(lambda c: c["points"][0].update(concurrency="many")), "'many' is not a whole number"),
        (damaged(lambda c: c["points"][0]["repeats"][0]["requests"][0].update(start=None)), "not a number"),
        (damaged(lambda c: c["points"][0]["repeats"][0]["requests"][0].update(between=[])), "took no time"),
        (damaged(lambda c: c["points"][0]["repeats"][0].update(power={"volts": 1})), "is damaged"),
        (damaged(lambda c: c["points"][0]["repeats"][0].update(requests=3)), "is damaged"),
    ],
)
def test_a_damaged_file_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        results.load(file)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot read"):
        results.load(tmp_path / "none.json")


def test_turns_are_merged_repeat_by_repeat() -> None:
    first, second = result([50.0, 51.0]), result([40.0])
    both = merged([replace(first, turns=({"turn": 1},)), replace(second, turns=({"turn": 2},))])
    assert [len(one.repeats) for one in both.points] == [3, 3, 3]
    assert both.points[0].spread("decode").median == pytest.approx(50.0)
    assert [turn["turn"] for turn in both.turns] == [1, 2]
    with pytest.raises(ValueError, match="different points"):
        merged([first, replace(second, points=tuple(reversed(second.points)))])


def test_a_figure_without_time_is_no_division_by_zero() -> None:
    assert math.isinf(Spread(0.0, 0.0, 1.0, 3).relative)
