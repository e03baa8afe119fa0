"""The table, the page, and the formats of others."""

import json
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml  # type: ignore[import-untyped, unused-ignore]
from made import result, with_drafts

from gb10 import cli
from gb10.bench import formats, page, table
from gb10.bench.results import Result
from gb10.bench.table import Reads


@pytest.mark.parametrize("made", [result(), with_drafts(result())])
def test_the_table_fits_a_terminal(made: Result) -> None:
    text = table.render(made, Reads(2_000_000_000, 230.0))
    assert max(map(len, text.splitlines())) <= 80
    assert "NVIDIA GB10" in text and "33 tokens an answer, 5 repeats" in text
    prose = next(line for line in text.splitlines() if line.startswith("prose "))
    assert prose.split()[1:3] == ["100", "50"]
    assert "prefill of 1000 tokens, nothing cached: 2000" in text


def test_gigabytes_a_second_count_steps_and_not_drafts() -> None:
    reads = Reads(2_000_000_000, 230.0)
    assert reads.rate(result().points[0]) == pytest.approx(100.0)
    assert reads.rate(with_drafts(result()).points[0]) == pytest.approx(100.0 / 2.5)
    assert "43% of 230 GB/s" in table.render(result(), reads)


def test_drafts_and_power_are_shown() -> None:
    text = table.render(with_drafts(result()))
    assert "2.50 tokens a step; by position: 100% 50%" in text
    assert "30.0 W (peak 35.0)" in text and "SM 2400 MHz (least 2390)" in text
    plain = table.render(result())
    assert "drafts" not in plain and "GPU, " not in plain


class Page(HTMLParser):
    """What a page has, and whether its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.identifiers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.loads.append(value or "")
            if name == "id":
                self.identifiers.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing() -> None:
    made = with_drafts(result())
    made = Result({**made.settings}, {**made.about, "model": "<script>alert(1)</script>"}, made.points)
    text = page.render(made)
    found = Page()
    found.feed(text)
    assert not found.open and not found.loads
    assert "script" not in found.tags and found.tags.count("svg") == 3
    assert len(found.identifiers) == len(set(found.identifiers))
    assert "&lt;script&gt;" in text
    assert page.render(made) == text


def test_plots_show_the_figures() -> None:
    text = page.render(with_drafts(result()))
    for svg in text.split("<svg ")[1:]:
        ElementTree.fromstring("<svg " + svg.split("</svg>")[0] + "</svg>")
    for words in ("tok/s, one request", "requests side by side", "position of the draft"):
        assert f">{words}<" in text
    assert "position of the draft" not in page.render(result())


def both() -> str:
    slow, quick = with_drafts(result()), with_drafts(result([80.0] * 5))
    return page.render_both(
        slow, replace(quick, about={**quick.about, "model": "<b>"}), ("vllm <x>", "gb10 &")
    )


def test_the_page_of_both_has_verdicts_and_both_sides() -> None:
    text, found = both(), Page()
    found.feed(text)
    assert not found.open and not found.loads and "b" not in found.tags and "x" not in found.tags
    assert found.tags.count("svg") == 6 and found.tags.count("table") == 3
    assert len(found.identifiers) == len(set(found.identifiers))
    assert "<td>decode, tok/s</td><td>50 <small>50–50</small></td><td>80 <small>80–80</small></td>" in text
    assert "<td>1.60</td><td>10%</td><td>B is faster</td>" in text
    assert "A: vllm &lt;x&gt;" in text and "B: gb10 &amp;" in text and "note: two models" in text


@pytest.mark.parametrize(("text", "plots"), [(page.render(with_drafts(result())), 3), (both(), 6)])
def test_a_browser_draws_the_page(text: str, plots: int, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium here; run by hand (docs/bench.md)")
    file = tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    picture = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [browser, *options, "--window-size=1000,5200", f"--screenshot={picture}", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    from matplotlib import image

    pixels = image.imread(picture)
    # NVIDIA's green of the bars, the blue of the second line: both plots are drawn.
    for red, green, blue in ((0x76, 0xB9, 0x00), (0x3B, 0x6E, 0xA5)):
        near = abs(pixels[..., :3] * 255 - (red, green, blue)).max(axis=-1) < 12
        assert near.sum() > 20
    dumped = subprocess.run(
        [browser, *options, "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert dumped.stdout.count("<svg") == plots and "Settings and machine" in dumped.stdout


def test_nvidia_performance_yaml() -> None:
    text, empty = formats.nvidia(result())
    content = yaml.safe_load(text)
    assert content["schema_version"] == 1 and content["measured_at"] == "2026-11-27"
    assert content["system"] == {
        "accelerator": "NVIDIA GB10",
        "accelerator_count": 1,
        "operating_system": "linux",
        "os_version": "Ubuntu 24.04",
        "driver_version": "580.95",
        "cuda_version": "13.0",
    }
    assert [profile["id"] for profile in content["profiles"]] == ["prose", "long", "mixed-x4"]
    long = content["profiles"][1]
    assert long["workload"]["input_tokens"] == 1000 and long["workload"]["requests"] == 5
    assert long["results"]["prefill_tokens_per_second_mean"] == 2000
    assert long["results"]["decode_tokens_per_second_mean"] == 50
    assert long["results"]["e2e_latency_ms_mean"] == pytest.approx(1140, abs=1)
    assert {"recipe_sha256", "status", "software.model_revision", "system.label"} <= set(empty)
    assert all(name in text.splitlines()[0] for name in empty)


def numbers(content: Any) -> set[str]:
    return {name for name, value in content.items() if value is not None}


def test_inference_atlas_record() -> None:
    text, empty = formats.atlas(with_drafts(result()))
    record = json.loads(text)
    assert record["kind"] == "sweep" and record["metrics"] is None and record["args_canonical"] is None
    assert [one["concurrency"] for one in record["sweep"]] == [1, 1, 4]
    metrics = record["sweep"][2]["metrics"]
    assert metrics["requests_ok"] == 20 and metrics["power_peak_w"] == 35
    assert metrics["accepted_tokens_per_step"] == 2.5 and metrics["acceptance_rate"] == 0.75
    assert metrics["ttft_ms"]["p50"] == pytest.approx(100)
    assert metrics["itl_ms"]["p99"] == pytest.approx(1e3 / 49, rel=0.01)
    assert metrics["prefill_tok_s"] is None and record["sweep"][1]["metrics"]["prefill_tok_s"] == 2000
    assert {"args_canonical", "model.id", "provenance.github_login"} <= set(empty)
    assert record["hardware"]["cuda"] == "13.0" and record["hardware"]["host"]["arch"] == "aarch64"


def test_report_writes_all_of_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, html, other = tmp_path / "a.json", tmp_path / "a.html", tmp_path / "a.yaml"
    file.write_text(json.dumps(result().as_json()))
    words = ["--html", str(html), "--format", f"nvidia={other}"]
    assert cli.main(["bench", "report", str(file), *words]) == 0
    printed = capsys.readouterr()
    assert printed.out == table.render(result())
    assert f"wrote {html}" in printed.err and "left empty: status" in printed.err
    assert html.read_text().startswith("<!DOCTYPE html>") and yaml.safe_load(other.read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "nvidia"], "is not NAME=FILE"),
        (["--format", "csv=x"], "with a name of: nvidia, atlas"),
        (["--html", "."], "is a folder"),
        (["--html", "same", "--format", "atlas=same"], "is asked for twice"),
        (["--bandwidth", "0", "--bytes-per-token", "1"], "no bandwidth"),
        (["--bytes-per-token", "many"], "'many' is not a whole number"),
    ],
)
def test_outputs_that_cannot_be(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Said before anything is measured: nothing listens on port 9."""
    assert cli.main(["bench", "9", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert message in printed.err
