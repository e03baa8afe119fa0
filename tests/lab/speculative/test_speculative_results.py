"""Acceptance from counters, first differences with their gaps, and the table."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from gb10.errors import UserError
from gb10_lab.speculative import distribution, report
from gb10_lab.speculative.acceptance import Counters
from gb10_lab.speculative.equality import Comparison, Completion, Divergence, compare
from gb10_lab.speculative.measure import Results, Row, Sampling
from gb10_lab.speculative.prompts import Prompt


def _metrics(drafts: int, accepted: list[int]) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(name="vllm:num_requests_running", value=3),
        SimpleNamespace(name="vllm:spec_decode_num_drafts", value=drafts),
        SimpleNamespace(name="vllm:spec_decode_num_accepted_tokens", value=sum(accepted)),
        SimpleNamespace(name="vllm:spec_decode_num_accepted_tokens_per_pos", values=accepted),
    ]


def test_acceptance_is_that_of_one_pass() -> None:
    before = Counters.read(_metrics(10, [9, 5]))
    counters = Counters.read(_metrics(30, [25, 10])).since(before)
    assert counters == Counters(20, (16, 5))
    assert counters.rates == [0.8, 0.25]
    assert counters.length == pytest.approx(1 + 0.8 + 0.25)


def test_the_first_pass_of_an_engine() -> None:
    nothing = Counters.read(_metrics(0, []))
    assert nothing == Counters()
    assert nothing.length == 1
    assert Counters.read(_metrics(4, [3, 1])).since(nothing) == Counters(4, (3, 1))


REFERENCE = [
    Completion((5, 6, 7), ({5: -0.1, 9: -3.0}, {6: -0.5, 8: -0.75}, {7: -0.2, 1: -2.0})),
    Completion((1, 2, 3), ({1: -0.1, 2: -3.0}, {2: -0.5, 8: -0.75}, {3: -0.2, 1: -2.5})),
]


def test_equal_output() -> None:
    assert compare(REFERENCE, [(5, 6, 7), (1, 2, 3)]) == Comparison(2, 6, ())


def test_a_near_tie_ends_the_comparison() -> None:
    comparison = compare(REFERENCE, [(5, 8, 4), (1, 2, 3)])
    assert comparison == Comparison(2, 5, (Divergence(0, 1, 6, 8, 0.25),))
    assert comparison.beyond(0.25) == []
    assert comparison.beyond(0.2) == list(comparison.divergences)


def test_an_unlikely_token_is_no_near_tie() -> None:
    comparison = compare(REFERENCE, [(5, 6, 7), (1, 2, 9)])
    assert comparison.divergences == (Divergence(1, 2, 3, 9, 2.5 - 0.2),)
    assert comparison.beyond(0.5)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare(REFERENCE, [(5, 6), (1, 2, 3)])


def _results(gap: float) -> Results:
    different = Comparison(32, 3000, (Divergence(31, 95, 6143, 6142, gap),))
    rows = [Row(0, "full", None, Counters(), Comparison(32, 3072, ()), 123.4)]
    rows += [
        Row(k, name, size, Counters(1000, tuple(range(900, 900 - 50 * k, -50))), different, 1234.5)
        for k in (1, 4)
        for name, size in (("full", None), ("1/4", 1536), ("1000", 1000))
    ]
    test = distribution.Test(12.5, 9, 0.4)
    wrong = distribution.Test(90.0, 9, 1e-9)
    name = "4 draft tokens, full vocabulary"
    sampling = [Sampling(name, {"joint": test}, False), Sampling("control", {"joint": wrong}, True)]
    return Results(rows, sampling)


def test_table_fits_a_terminal() -> None:
    text = report.table(_results(0.125), 0.5)
    assert max(len(line) for line in text.split("\n")) <= 80
    assert "0.90  0.85  0.80  0.75" in text
    assert "4.30" in text
    assert "10.00" in text, "the speed against the run without drafts"
    assert "31 of 32" in text
    assert "  0 of 3072 (0.00%)" in text, "the control"
    assert "  1 of 3000 (0.03%)" in text, "one run: six runs with the same place are no higher rate"
    assert "different places in all 7 runs: 1" in text
    assert "NO NEAR-TIE" not in text
    assert "FAILED" not in text


def test_table_shows_what_is_wrong() -> None:
    results = _results(0.75)
    results.sampling[0].tests["joint"] = distribution.Test(90.0, 9, 1e-9)
    results.sampling[1].tests["joint"] = distribution.Test(9.0, 9, 0.5)
    text = report.table(results, 0.5)
    assert max(len(line) for line in text.split("\n")) <= 80
    assert text.count("NO NEAR-TIE") == 1, "one place, found in six runs"
    assert "0.750     6  NO NEAR-TIE" in text
    assert text.count("FAILED") == 2
    assert [test.passed for test in results.sampling] == [False, False]


def test_content_has_all_figures() -> None:
    prompts = [Prompt("p/a.py", "code", (1, 2, 3))]
    content = report.content(_results(0.125), 0.5, prompts)
    row = content["rows"][4]
    assert (row["draft"], row["vocabulary"], row["draft_vocabulary_size"]) == (4, "full", None)
    assert row["acceptance"] == [0.9, 0.85, 0.8, 0.75]
    assert row["divergences"] == [
        {"prompt": 31, "position": 95, "reference": 6143, "other": 6142, "gap": 0.125}
    ]
    assert content["prompts"] == [{"name": "p/a.py", "kind": "code", "tokens": 3}]
    assert [test["passed"] for test in content["sampling"]] == [True, True]


def test_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    for name, start in (("plot.svg", b"<?xml"), ("plot.png", b"\x89PNG")):
        report.plot(_results(0.125), tmp_path / name, "MTP drafts")
        assert (tmp_path / name).read_bytes().startswith(start)
    again = tmp_path / "again.svg"
    report.plot(_results(0.125), again, "MTP drafts")
    assert again.read_bytes() == (tmp_path / "plot.svg").read_bytes()


def test_accepted_lengths_are_held_against_recorded_ones(tmp_path: Path) -> None:
    results = _results(0.125)
    file = tmp_path / "speculative.json"
    file.write_text(json.dumps(report.content(results, 0.5, [])))
    recorded = report.read_lengths(file)
    assert recorded[1, "full"] == pytest.approx(1.9)
    assert report.other_lengths(results, recorded) == []
    recorded[1, "full"] += report.LENGTH + 0.01
    del recorded[4, "1000"]
    assert report.other_lengths(results, recorded) == [
        "1 drafts, vocabulary full: accepted length 1.90, recorded 2.01",
        "4 drafts, vocabulary 1000: not recorded",
    ]
    recorded[1, "full"] = math.nan
    assert len(report.other_lengths(results, recorded)) == 2
    file.write_text("[]")
    with pytest.raises(UserError, match=r"is no speculative\.json"):
        report.read_lengths(file)
