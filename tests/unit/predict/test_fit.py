"""The shipped constants are what the fit gives, and what it says of held-out rows is what the docs say."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from gb10.predict.architecture import architectures
from gb10.predict.cost import fitted
from gb10.predict.measured import FIT, VLLM, Row, rows
from gb10_lab.predict.command import EAGER, constants_text
from gb10_lab.predict.fit import error, fit, fitted_rows, prior
from gb10_lab.predict.report import cells, excluded, families, sentence
from gb10_lab.predict.validate import Held, depth, drafts, held_out, including, others, spread, within

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "lab/results/2026-11-27-h200-engine.json"
SHIPPED = ROOT / "python/src/gb10/predict/constants.toml"
DOCS = (ROOT / "docs/predict.md").read_text()


@pytest.fixture(scope="module")
def held() -> list[Held]:
    return held_out()


def test_the_fit_gives_the_shipped_constants() -> None:
    found, shipped = tomllib.loads(constants_text(RESULTS)), tomllib.loads(SHIPPED.read_text())
    assert found["engine"].keys() == shipped["engine"].keys() >= {"vllm", "llama.cpp", "any", "gb10"}
    for engine, tables in shipped["engine"].items():
        for table, values in tables.items():
            assert found["engine"][engine][table] == pytest.approx(values, rel=1e-3, abs=1e-5)
    assert found["held_out"] == pytest.approx(shipped["held_out"], rel=1e-3, abs=1e-4)


def test_held_out_families_are_within_the_limits(held: list[Held]) -> None:
    """Issue 15: median at most 6 %, four of five within 10 %, none off by more than 20 %."""
    found = spread(held)
    assert found.points == len(fitted_rows(VLLM)) == 24
    assert found.median <= 0.06
    assert within(held) >= 0.8 and found.most <= 0.1
    assert found.worst <= 0.2


def test_llama_cpp_at_depth_is_within_the_limits() -> None:
    found = depth()
    assert len(found) == 7
    assert spread(found).median <= 0.06 and spread(found).worst <= 0.1


def test_a_family_that_is_held_out_has_no_part_in_its_prediction(held: list[Held]) -> None:
    """Its own measurements, halved, change nothing of what is predicted for it."""
    family = "Qwen3.6 MoE"

    def changed(row: Row) -> Row:
        mine = row.architecture.family == family
        return replace(row, tokens_per_second=row.tokens_per_second / 2) if mine else row

    again = {one.row.id: one.predicted for one in held_out([changed(row) for row in rows()])}
    for one in held:
        same = again[one.row.id] == pytest.approx(one.predicted, rel=1e-6)
        assert same == (one.family == family)


def test_a_changed_row_changes_the_constants() -> None:
    listed = fitted_rows(VLLM)
    planted = [replace(row, tokens_per_second=row.tokens_per_second * 1.1) for row in listed[:1]]
    before, after = fit(listed), fit([*planted, *listed[1:]])
    assert abs(after.rates["read 16 bit"] / before.rates["read 16 bit"] - 1) > 1e-4
    assert after.rates["read 16 bit"] > before.rates["read 16 bit"]


def test_rows_that_the_priors_predict_leave_the_priors() -> None:
    """An engine that does what the priors say gives the priors back."""
    known = prior()
    made = [
        replace(row, tokens_per_second=1 / sum(known.times(row.work()).values())) for row in fitted_rows(VLLM)
    ]
    found = fit(made)
    for kind, rate in known.rates.items():
        assert found.rates[kind] == pytest.approx(rate, rel=1e-4)
    assert max(abs(offset) for offset in found.stacks.values()) < 1e-4
    assert max(abs(error(row, found)) for row in made) < 1e-4


def test_a_slower_engine_is_seen() -> None:
    """Rows with 100 us a layer of attention instead of 25: the fit finds them there."""
    known = prior()
    slow = replace(known, pieces={**known.pieces, "attention layer": 100e-6})
    made = [
        replace(row, tokens_per_second=1 / sum(slow.times(row.work()).values())) for row in fitted_rows(VLLM)
    ]
    found = fit(made)
    longer = {kind: found.pieces[kind] / known.pieces[kind] for kind in known.pieces}
    assert max(longer, key=lambda kind: longer[kind]) == "attention layer"
    assert longer["attention layer"] > 1.8


def test_what_is_excluded_is_not_fitted() -> None:
    assert EAGER not in {row.id for row in fitted_rows(VLLM)}
    assert EAGER in {row.id for row in fitted_rows(VLLM, including(EAGER))}


def test_every_engine_that_is_fitted_is_shipped() -> None:
    assert {"vllm", "gb10", "any"} <= set(fitted().engines)
    assert {row.engine for row in rows() if row.use == FIT} >= {"vllm", "llama.cpp"}


def numbers(text: str) -> str:
    """A table without the last digit of percents and rates, which another processor may round otherwise."""
    return re.sub(r"(\d+\.\d)\d*", r"\1", re.sub(r"\d\.\d%", "%", text))


def test_the_docs_have_these_figures(held: list[Held]) -> None:
    listed = [
        *families(held),
        *cells(held),
        *cells(depth()),
        *cells(others()),
        *cells(drafts()),
        *excluded(rows()),
        sentence(held),
        sentence(held_out(including(EAGER))),
    ]
    docs = numbers(re.sub(r"\s+", " ", DOCS))
    for line in listed:
        assert numbers(line) in docs, line


def test_each_model_of_the_docs_is_known() -> None:
    for name in re.findall(r"gb10 predict ([a-z0-9.-]+)", DOCS):
        assert name in architectures()


def test_the_plot_has_all_groups(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from gb10_lab.predict.command import groups
    from gb10_lab.predict.plot import draw

    draw(tmp_path / "predict.svg", groups())
    text = (tmp_path / "predict.svg").read_text()
    committed = (ROOT / "docs/predict.svg").read_text()
    for words in ("vLLM, family held out (24)", "llama.cpp at depth, never fitted (7)"):
        assert words in text and words in committed
