"""UE4M3: the block scales. The bits are those of E4M3FN with a sign bit of 0.

Four exponent bits with bias 7, three mantissa bits, subnormals, no infinity. 0x7E is 448, 0x7F is NaN. The
format is that of "FP8 Formats for Deep Learning" (arXiv 2209.05433); torch calls it float8_e4m3fn.
"""

import torch

from gb10.nvfp4.constants import UE4M3_MAX

NAN_BITS = 0x7F

_EXACT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_SIGN_BIT = 0x80


def encode(x: torch.Tensor) -> torch.Tensor:
    """Round every element to the nearest UE4M3 number and return its bits.

    `x` is float16, bfloat16 or float32 of any shape. Returns uint8 of the same shape. Ties go to the even
    mantissa. Everything above 448, infinity included, saturates to 0x7E. NaN of either sign gives 0x7F. -0
    gives 0.

    Raises TypeError for other dtypes (float64 would be rounded twice) and ValueError for a negative number:
    the format has no sign.
    """
    if x.dtype not in _EXACT_DTYPES:
        raise TypeError(f"UE4M3 encode needs float16, bfloat16 or float32, got {x.dtype}")
    if bool((x < 0).any()):
        raise ValueError("UE4M3 has no sign: a block scale must not be negative")
    # torch turns what is too large into NaN, so the clamp comes first. It lets NaN pass.
    bits = x.abs().clamp(max=UE4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    return bits.masked_fill(x.isnan(), NAN_BITS)


def decode(bits: torch.Tensor) -> torch.Tensor:
    """Give the float32 number of every byte. `bits` is uint8 of any shape; the shape stays. 0x7F gives NaN.

    Raises TypeError when `bits` is not uint8 and ValueError when a byte has its top bit set.
    """
    if bits.dtype != torch.uint8:
        raise TypeError(f"UE4M3 bits are uint8, got {bits.dtype}")
    if bool((bits >= _SIGN_BIT).any()):
        raise ValueError("UE4M3 has no sign: a byte above 0x7F is not a block scale")
    return bits.view(torch.float8_e4m3fn).to(torch.float32)
