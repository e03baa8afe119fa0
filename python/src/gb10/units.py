"""Sizes as users write them and as they are printed.

Digits are ASCII's, and nothing stands around them: Python's int() takes "1_000", " 3000 ", "+3000" and the
digits of all scripts as well, which nobody means who writes a setting. A small letter counts in thousands
and a capital one in 1024s, as in vLLM: 32k is 32000, 32K is 32768.
"""

import math
import re

MIB = 1 << 20
GIB = 1 << 30
_LETTERS = "kmgt"
_LARGEST = 1 << 62
"""Above what any machine has or any model counts."""


def parse_whole(text: str) -> int:
    """A whole number of 0 or more, in digits. Raises ValueError otherwise."""
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def parse_decimal(text: str) -> float:
    """A finite number of 0 or more: 0.75, .5, 1, 1e-1. Raises ValueError otherwise, for 1e999 too."""
    if not re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        raise ValueError(f"{text!r} is not a number")
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text!r} is too large")
    return number


def parse_bytes(text: str) -> int:
    """Bytes: a whole number, or one with a letter such as 512M, 1.5G or 2g. Raises ValueError otherwise."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kmgtKMGT])", text)
    if match is None:
        return parse_whole(text)
    power = _LETTERS.index(match[2].lower()) + 1
    whole, _, part = match[1].partition(".")
    number: int = int(whole + part) * (1000 if match[2].islower() else 1024) ** power // 10 ** len(part)
    if number > _LARGEST:
        raise ValueError(f"{text!r} is too large")
    return number


def parse_count(text: str) -> int:
    """Tokens or other things to count, at least 1: 4096, 32k, 2M. Raises ValueError otherwise."""
    number = parse_bytes(text)
    if number < 1:
        raise ValueError(f"{text!r} is below 1")
    return number


def text_size(size: int) -> str:
    """``1610612736`` bytes as "1.5 GiB", small sizes in MiB."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
