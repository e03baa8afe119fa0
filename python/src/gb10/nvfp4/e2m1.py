"""E2M1: one sign bit, two exponent bits, one mantissa bit.

Codes 0 to 7 stand for 0, 0.5, 1, 1.5, 2, 3, 4, 6. Codes 8 to 15 are the same numbers with the sign bit set,
so 8 is -0. The format is that of the OCP Microscaling Formats specification 1.0, section 5.3.3. Rounding
follows PTX `cvt.rn.satfinite.e2m1x2.f32`: nearest, ties to even, saturating, NaN of either sign to +6.
"""

import torch

VALUES: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The non-negative values, in the order of their codes."""

NAN_CODE = 0x7
"""What NaN becomes, whatever its sign."""

SIGN_BIT = 0x8

# Where the code steps up by one. Each number is the middle of two neighbours. The tie goes to the even code:
# up to it for the "at or above" list, down from it for the "above" list.
_STEP_ABOVE = (0.25, 1.25, 2.5, 5.0)
_STEP_AT_OR_ABOVE = (0.75, 1.75, 3.5)

_DECODED = torch.tensor([*VALUES, *(-value for value in VALUES)], dtype=torch.float32)


def encode(x: torch.Tensor) -> torch.Tensor:
    """Round every element to the nearest E2M1 number.

    `x` has any shape and any floating dtype; the comparison is exact in each of them (float8 is compared as
    float32, which holds all its numbers). Returns uint8 codes
    0 to 15 of the same shape. Ties go to the even code. -0 and negative numbers that round to zero give 0x8.
    Infinities and everything beyond 6 saturate. NaN of either sign gives 0x7.

    Raises TypeError when `x` is not floating point.
    """
    if not x.is_floating_point():
        raise TypeError(f"E2M1 encode needs a floating point tensor, got {x.dtype}")
    if x.element_size() == 1:
        x = x.to(torch.float32)
    magnitude = x.abs()
    codes = torch.signbit(x).view(torch.uint8) << 3
    for middle in _STEP_ABOVE:
        codes += (magnitude > middle).view(torch.uint8)
    for middle in _STEP_AT_OR_ABOVE:
        codes += (magnitude >= middle).view(torch.uint8)
    return codes.masked_fill_(x.isnan(), NAN_CODE)


def decode(codes: torch.Tensor) -> torch.Tensor:
    """Give the float32 number of every code. `codes` is uint8 of any shape, 0 to 15; the shape stays.

    Raises TypeError when `codes` is not uint8 and ValueError when a code is above 15.
    """
    check_codes(codes)
    return _DECODED.to(codes.device).index_select(0, codes.reshape(-1).to(torch.int32)).reshape(codes.shape)


def check_codes(codes: torch.Tensor) -> None:
    """Raise TypeError when `codes` is not uint8, ValueError when one of them is above 15."""
    if codes.dtype != torch.uint8:
        raise TypeError(f"E2M1 codes are uint8, got {codes.dtype}")
    if codes.numel() and int(codes.max()) > SIGN_BIT + NAN_CODE:
        raise ValueError(f"E2M1 codes are 0 to 15, got {int(codes.max())}")
