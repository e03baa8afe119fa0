"""Sizes: what users write, and what is printed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gb10.arguments import whole
from gb10.units import parse_bytes, parse_count, parse_decimal, parse_whole, text_size

NO_NUMBERS = (
    "٣٠٠٠",
    "３０００",
    "1_000",
    " 3000 ",
    "3000\n",
    "+3000",
    "-3000",
    "３k",
    "1_0k",
    "²",
    "",
    "9" * 5000,
)
"""Python's int() takes most of these."""


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", 1),
        ("131072", 131072),
        ("32k", 32_000),
        ("32K", 32_768),
        ("1.5k", 1500),
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("2g", 2 * 10**9),
        ("1t", 10**12),
        ("1T", 1 << 40),
    ],
)
def test_numbers_with_letters(text: str, number: int) -> None:
    assert parse_bytes(text) == number
    assert parse_count(text) == number


@pytest.mark.parametrize(
    "text", ["", "k", "4x", "4kk", "-1", "-1k", "1,5k", "1.5", "1e3", "auto", "4 k", "0x10"]
)
def test_malformed(text: str) -> None:
    for parse in (parse_bytes, parse_count):
        with pytest.raises(ValueError):
            parse(text)


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_digits_are_ascii_and_alone(text: str) -> None:
    for parse in (parse_whole, parse_bytes, parse_count, parse_decimal):
        with pytest.raises(ValueError):
            parse(text)
    with pytest.raises(Exception, match="is not a whole number of 0 or more"):
        whole(0)(text)


@pytest.mark.parametrize("text", ["9" * 400 + "k", "9" * 19 + "T"])
def test_more_than_there_is(text: str) -> None:
    with pytest.raises(ValueError, match="is too large"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "number"), [("0.75", 0.75), (".5", 0.5), ("1", 1.0), ("1.", 1.0), ("1e-1", 0.1), ("5E-1", 0.5)]
)
def test_decimals(text: str, number: float) -> None:
    assert parse_decimal(text) == number


@pytest.mark.parametrize(
    "text", ["nan", "inf", "0_1.5", "٠.٥", " 0.5", "+0.5", "0.5\n", ".", "0x1", "0.５", "1e9999"]
)
def test_no_decimals(text: str) -> None:
    with pytest.raises(ValueError):
        parse_decimal(text)


@pytest.mark.parametrize("text", ["0", "0k", "0.0001k"])
def test_no_bytes_are_a_size_but_no_count(text: str) -> None:
    assert parse_bytes(text) == 0
    with pytest.raises(ValueError, match="is below 1"):
        parse_count(text)


@given(st.integers(1, 10**6))
def test_scales(number: int) -> None:
    assert parse_count(f"{number}k") == number * 1000
    assert parse_count(f"{number}K") == number * 1024


@pytest.mark.parametrize(("size", "text"), [(3 << 29, "1.5 GiB"), (64 << 20, "64 MiB"), (0, "0 MiB")])
def test_text_size(size: int, text: str) -> None:
    assert text_size(size) == text
