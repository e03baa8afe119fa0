"""The table and the plot."""

import dataclasses
from pathlib import Path

import pytest

from gb10_lab.quality import report
from gb10_lab.quality.figures import Figures

BASE = Figures(23.4567, 1.2, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 9_876_543)
OTHER = Figures(25.0, 1.3, 0.0658, 0.0034, 0.9423, 0.002, 0.01234, 0.00056, 7_654_321)
NAMES = {"bf16": "BF16", "shipped": "NVFP4 as shipped (W4A16)", "sparse24": "+ 2:4 sparse experts"}
FIGURES = {"bf16": BASE, "shipped": OTHER, "sparse24": dataclasses.replace(OTHER, bytes=6_000_000, kl=0.3)}


def test_table_has_a_line_for_each_row_and_fits_a_terminal() -> None:
    bad = dataclasses.replace(
        OTHER,
        perplexity=6123.4567,
        change=212.3456,
        change_error=12.5,
        kl=4.7,
        kl_error=0.0213,
        bytes=98_765_432,
    )
    lines = report.table(NAMES, FIGURES | {"sparse24": bad}).splitlines()
    assert max(map(len, lines)) <= report.WIDTH
    rows = {line[:24].strip(): line[24:].split() for line in lines}
    assert rows["BF16"] == ["23.457", "9.88"]
    assert rows["NVFP4 as shipped (W4A16)"] == ["25.000", "+6.58", "±0.34", "94.23", "12.34", "±0.56", "7.65"]
    assert rows["+ 2:4 sparse experts"][1:3] == ["+21235", "±1250"]


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (12.3456, 0.56, "12.35 ±0.56"),
        (12.3456, 5.6, "12.3 ±5.6"),
        (12.3456, 56.0, "12 ±56"),
        (0.0123456, 0.00056, "0.01 ±0.00"),
        (0.5, 0.0, "0.50 ±0.00"),
    ],
)
def test_a_number_has_the_decimals_that_its_error_allows(value: float, error: float, expected: str) -> None:
    assert report.with_error(value, error) == expected


@pytest.mark.parametrize(("suffix", "begin"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_plot_is_the_same_bytes_twice_and_shows_every_row(suffix: str, begin: bytes, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / f"{number}.{suffix}" for number in range(2)]
    for file in files:
        report.plot(NAMES, FIGURES, file, suffix, "title")
    content = files[0].read_bytes()
    assert content == files[1].read_bytes()
    assert content.startswith(begin)
    if suffix == "svg":
        # Text is drawn as outlines; the words stand in comments.
        for name in NAMES.values():
            assert name in content.decode().replace("&#x2026;", "…")
