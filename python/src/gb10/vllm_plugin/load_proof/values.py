"""Whether what was loaded can be computed with: numbers that are finite, scales that are positive."""

from dataclasses import dataclass
from typing import Any

import torch

_GLOBAL_SCALES = (
    *("weight_scale_2", "weight_global_scale"),
    *("input_scale", "input_scale_2", "input_global_scale"),
)
_FP8 = {torch.float8_e4m3fn: 0x7F, torch.float8_e5m2: 0x7C}
"""From which code on a byte without its sign is no finite number. E4M3 has no infinity."""

_AT_ONCE = 1 << 24
"""Bytes of FP8 weights that are looked at together; a copy of them is made."""


@dataclass(frozen=True)
class Fault:
    """The first element of a parameter that is wrong: its number in the flat parameter, and what it is."""

    element: int
    text: str


def _first(bad: torch.Tensor, text: str) -> Fault:
    return Fault(int(torch.nonzero(bad.flatten())[0, 0]), text)


def _block_scales(parameter: torch.Tensor) -> Fault | None:
    """E4M3 scales of blocks: bytes 0x00 to 0x7E are right, 0x7F is NaN, the rest has a sign bit."""
    codes = parameter.view(torch.uint8)
    if int(codes.max()) < 0x7F:
        return None
    nan = (codes & 0x7F) == 0x7F
    if bool(nan.any()):
        return _first(nan, "has a block scale that is NaN")
    # 0x80 is -0, as good as 0.
    negative = codes > 0x80
    return _first(negative, "has a negative block scale") if bool(negative.any()) else None


def _fp8_values(parameter: torch.Tensor) -> Fault | None:
    codes = parameter.contiguous().view(torch.uint8).flatten()
    for number, part in enumerate(codes.split(_AT_ONCE)):
        bad = (part & 0x7F) >= _FP8[parameter.dtype]
        if bool(bad.any()):
            found = _first(bad, "has a value that is not finite")
            return Fault(number * _AT_ONCE + found.element, found.text)
    return None


def _floats(parameter: torch.Tensor, positive: bool) -> Fault | None:
    # One pass; a NaN anywhere comes out of both.
    low, high = torch.aminmax(parameter)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        bad = ~torch.isfinite(parameter)
        return _first(bad, f"has a value that is {float(parameter[bad][0])}")
    if positive and not float(low) > 0:
        return _first(parameter <= 0, f"is {float(low):g}; a scale must be positive")
    return None


def fault(leaf: str, parameter: torch.Tensor) -> Fault | None:
    """What is wrong with the values of one parameter, or None. ``leaf`` is its name in its module.

    Packed codes have no wrong value. Block scales of 0 are right: ModelOpt writes them for blocks of zeros.
    """
    if parameter.numel() == 0 or parameter.is_meta:
        return None
    value = parameter.detach()
    if value.dtype in _FP8:
        is_scale = value.dtype is torch.float8_e4m3fn and "scale" in leaf
        return _block_scales(value) if is_scale else _fp8_values(value)
    if not value.is_floating_point() or value.element_size() < 2:
        return None
    return _floats(value, leaf.endswith(_GLOBAL_SCALES))


def idle_blocks(module: Any, leaf: str) -> int:
    """How many blocks have a scale of 0 and codes that are not 0: whatever they meant, they are 0 now."""
    scale = getattr(module, leaf)
    codes = getattr(module, leaf.removesuffix("_scale"), None)
    packed = getattr(module, leaf.replace("weight_scale", "weight_packed"), None) if codes is None else codes
    if packed is None or packed.dtype is not torch.uint8 or scale.dtype is not torch.float8_e4m3fn:
        return 0
    if packed.shape[:-1] != scale.shape[:-1] or packed.shape[-1] != scale.shape[-1] * 8:
        return 0
    zero = (scale.detach().view(torch.uint8) & 0x7F) == 0
    if not bool(zero.any()):
        return 0
    blocks = packed.detach().unflatten(-1, (-1, 8))[zero]
    return int(((blocks & 0x77) != 0).any(-1).sum())
