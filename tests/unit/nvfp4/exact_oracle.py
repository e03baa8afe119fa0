"""Exact oracles for the small formats: rational numbers and bit patterns, no floating point rounding."""

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction

F32_INFINITY = 0x7F80_0000
F32_MAGNITUDES = 0x8000_0000


def f32_value(pattern: int) -> Fraction:
    """Give the exact value of the finite, non-negative float32 with these bits."""
    exponent, mantissa = pattern >> 23, pattern & 0x7F_FFFF
    if exponent == 0:
        return Fraction(mantissa, 2**149)
    return Fraction(2**23 + mantissa) * Fraction(2) ** (exponent - 150)


def e2m1_values() -> list[Fraction]:
    """Give the values of codes 0 to 7, from the definition: bias 1, one mantissa bit, subnormals."""
    return [_minifloat(code, mantissa_bits=1, bias=1) for code in range(8)]


def ue4m3_values() -> list[Fraction]:
    """Give the values of bytes 0x00 to 0x7E, from the definition: bias 7, three mantissa bits, subnormals."""
    return [_minifloat(code, mantissa_bits=3, bias=7) for code in range(127)]


def nearest(pattern: int, values: Sequence[Fraction]) -> int:
    """Give the index of the value nearest to a non-negative float32; the even one of two equally near."""
    if pattern == F32_INFINITY:
        return len(values) - 1
    x = f32_value(pattern)
    return min(range(len(values)), key=lambda code: (abs(x - values[code]), code % 2))


def first_patterns(values: Sequence[Fraction]) -> list[int]:
    """Give, for each index, the smallest float32 bit pattern that rounds to it.

    Rounding is monotonic, so bisection finds it.
    """
    patterns = range(F32_INFINITY + 1)
    return [
        bisect_left(patterns, code, key=lambda pattern: nearest(pattern, values))
        for code in range(len(values))
    ]


def _minifloat(code: int, *, mantissa_bits: int, bias: int) -> Fraction:
    exponent, mantissa = code >> mantissa_bits, code & (2**mantissa_bits - 1)
    if exponent == 0:
        return Fraction(mantissa, 2**mantissa_bits) * Fraction(2) ** (1 - bias)
    return (1 + Fraction(mantissa, 2**mantissa_bits)) * Fraction(2) ** (exponent - bias)
