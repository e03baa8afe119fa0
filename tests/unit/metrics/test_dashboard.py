"""The dashboard and the rules name metrics that there are, and docs/metrics.md names all of ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm.version", reason="vLLM is not installed")

from gb10.vllm_plugin.server.canary import Sung
from gb10.vllm_plugin.server.health import Health
from gb10.vllm_plugin.server.metrics import Canaries, Ours

# Brought by vLLM, without types.
yaml: Any = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs" / "metrics"
NAME = re.compile(r"\b(?:vllm:|gb10:|gb10_)[a-z0-9_:]+")
SUFFIXES = ("_total", "_count", "_sum", "_bucket")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Our metrics with everything known: names and their labels."""
    from gb10.machine import watch

    board = tmp_path_factory.mktemp("board") / "board"
    watch.Board(str(board), write=True)
    canaries = Canaries()
    canaries.note(Sung(None, 14, 0.25, 0.01))
    told = {
        "gb10": "1",
        "differences": [],
        "planned": [{"operation": "", "variant": "", "batch": [1, None], "backend": "", "whose": ""}],
        "ran": [{"operation": "", "kernel": "", "whose": ""}],
    }
    device = {"name": "", "source": "", "rate": 1.0}
    figures = {"weights": {"lm_head": 1}, "state": 1, "kv": 1, "device": device}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(watch.ENV_NAME, str(board))
        made = Ours(Health(), canaries, lambda: told, figures)
    cache = SimpleNamespace(kv_cache_size_tokens=1)
    made.client = SimpleNamespace(errored=False, vllm_config=SimpleNamespace(cache_config=cache))
    found: dict[str, set[str]] = {}
    for metric in made.collect():
        for sample in metric.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture(scope="module")
def theirs() -> set[str]:
    """What vLLM's sources name, without the suffixes that prometheus_client adds."""
    spec = find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    texts = [(folder / "v1" / name).read_text() for name in ("metrics/loggers.py", "spec_decode/metrics.py")]
    return {name for text in texts for name in re.findall(r'"(vllm:[a-z_]+)"', text)}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DOCS / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> Any:
    return json.loads((DOCS / "grafana.json").read_text())


def expressions() -> Iterator[str]:
    for rule in rules():
        yield rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def test_every_name_is_exposed(ours: dict[str, set[str]], theirs: set[str]) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    named = {name for expression in expressions() for name in NAME.findall(expression)}
    assert len(named) > 25
    for name in named:
        bare = next((name.removesuffix(end) for end in SUFFIXES if name.endswith(end)), name)
        assert name in ours or name in recorded or {name, bare} & theirs, name


def test_every_rule_is_shown_or_used() -> None:
    text = "\n".join(expressions())
    for rule in rules():
        if "record" in rule:
            assert rule["record"] in text, rule["record"]


def test_panels(ours: dict[str, set[str]]) -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        taken = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        cells |= taken
        for target in panel["targets"]:
            assert '{job="$job", instance=~"$instance"}' in target["expr"]
            # A legend names labels that the samples have.
            wanted = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            alone = re.fullmatch(r"(gb10_\w+)\{[^}]*\}", target["expr"])
            if alone:
                assert wanted <= ours[alone[1]] | {"instance"}, target


def test_the_documentation_has_every_metric(ours: dict[str, set[str]]) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"^\| `(gb10_\w+)", text, re.MULTILINE)) == set(ours)
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert set(re.findall(r"^\| `(gb10:[\w:]+)", text, re.MULTILINE)) == recorded
    # And their labels.
    for name, labels in ours.items():
        said = re.search(rf"^\| `{name}(?:\{{([\w, ]+)\}})?`", text, re.MULTILINE)
        assert said and set(filter(None, (said[1] or "").split(", "))) == labels, name
