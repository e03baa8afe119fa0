"""Sizes as users write them and as they are printed.

A small letter counts in thousands and a capital one in 1024s, as in vLLM: 32k is 32000, 32K is 32768.
"""

import re

MIB = 1 << 20
GIB = 1 << 30
_LETTERS = "kmgt"


def parse_bytes(text: str) -> int:
    """Bytes: a whole number, or one with a letter such as 512M, 1.5G or 2g. Raises ValueError otherwise."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgtKMGT])", text)
    if match is None:
        number = int(text)
        if number < 0:
            raise ValueError(f"{text!r} is below 0")
        return number
    power = _LETTERS.index(match[2].lower()) + 1
    return int(float(match[1]) * (1000 if match[2].islower() else 1024) ** power)


def parse_count(text: str) -> int:
    """Tokens or other things to count, at least 1: 4096, 32k, 2M. Raises ValueError otherwise."""
    number = parse_bytes(text)
    if number < 1:
        raise ValueError(f"{text!r} is below 1")
    return number


def text_size(size: int) -> str:
    """``1610612736`` bytes as "1.5 GiB", small sizes in MiB."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
