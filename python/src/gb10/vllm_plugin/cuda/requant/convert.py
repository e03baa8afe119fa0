"""Matrices in 16 bit to FP8 and NVFP4, row by row on their device, with the error that it costs.

A float32 copy exists of a few rows at a time, so that beside the matrix and the result little is needed. A
value that is no number makes the error no number; `Error.refusal` says so.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from gb10 import fp8
from gb10.kernels.nvfp4_search import nvfp4_search, takes
from gb10.nvfp4 import BLOCK_SIZE, dequantize, global_scale_for, power_of_two, quantize_searched

_AT_ONCE = 1 << 22
"""Values that are worked on together: 16 MiB in float32, a few times."""


class Error(NamedTuple):
    """Squared differences of a converted matrix, and squares of the matrix, both summed."""

    difference: float
    norm: float

    @property
    def relative(self) -> float:
        """The Frobenius norm of the difference over that of the matrix; 0 for a matrix of zeros."""
        return math.sqrt(self.difference / self.norm) if self.norm else math.sqrt(self.difference)

    def __add__(self, other: object) -> "Error":
        if not isinstance(other, Error):
            return NotImplemented
        return Error(self.difference + other.difference, self.norm + other.norm)


class Fp8(NamedTuple):
    """E4M3 codes float8_e4m3fn ``[N, K]``, and one float32 scale a row, ``[N]``."""

    codes: torch.Tensor
    scales: torch.Tensor


class NvFp4(NamedTuple):
    """As `gb10.kernels.nvfp4_gemv` takes it: uint8 ``[N, K / 2]``, E4M3 ``[N, K / 16]``, float32 ``[1]``."""

    codes: torch.Tensor
    scales: torch.Tensor
    global_scale: torch.Tensor


def _pieces(weight: torch.Tensor) -> Iterator[slice]:
    rows = max(1, _AT_ONCE // weight.shape[1])
    return (slice(first, first + rows) for first in range(0, weight.shape[0], rows))


def _squares(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.square().sum(dtype=torch.float64)


def to_fp8(weight: torch.Tensor) -> tuple[Fp8, Error]:
    """Convert ``[N, K]`` as `gb10.fp8.quantize_rows` does."""
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device)
    scales = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    sums = torch.zeros(2, dtype=torch.float64, device=weight.device)
    for piece in _pieces(weight):
        wide = weight[piece].float()
        codes[piece], scales[piece] = fp8.quantize_rows(wide)
        sums[0] += _squares(fp8.dequantize(codes[piece], scales[piece]) - wide)
        sums[1] += _squares(wide)
    return Fp8(codes, scales), Error(*sums.tolist())


def to_nvfp4(weight: torch.Tensor) -> tuple[NvFp4, Error]:
    """Convert ``[N, K]`` with searched block scales (`gb10.nvfp4.search`).

    The global scale is the usual one rounded up to a power of two. Block scales lose nothing by that, but
    some at the far end of their range, and matrices can be put together later (`join`).
    """
    rows, columns = weight.shape
    codes = torch.empty(rows, columns // 2, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(rows, columns // BLOCK_SIZE, dtype=torch.float8_e4m3fn, device=weight.device)
    # Not weight.abs(), which is a copy of all of it.
    largest = max(abs(float(end)) for end in weight.aminmax()) if weight.numel() else 0.0
    if not math.isfinite(largest):
        return NvFp4(codes, scales, torch.ones(1, device=weight.device)), Error(math.nan, math.nan)
    global_scale = power_of_two(global_scale_for(largest)).reshape(1).to(weight.device)
    if takes(weight):
        return NvFp4(codes, scales, global_scale), Error(
            *nvfp4_search(weight, global_scale, codes, scales).sum(dim=0).tolist()
        )
    sums = torch.zeros(2, dtype=torch.float64, device=weight.device)
    for piece in _pieces(weight):
        wide = weight[piece].float()
        made = quantize_searched(wide, global_scale)
        codes[piece], scales[piece] = made.packed, made.block_scales
        sums[0] += _squares(dequantize(made.packed, made.block_scales, global_scale) - wide)
        sums[1] += _squares(wide)
    return NvFp4(codes, scales, global_scale), Error(*sums.tolist())


def join(parts: list[NvFp4]) -> NvFp4:
    """One matrix of the rows of all, with the largest of their global scales.

    All are powers of two, as `to_nvfp4` makes them: a block scale changes its exponent alone. Only one that
    becomes subnormal is rounded, and it keeps a value above zero.
    """
    largest = torch.cat([part.global_scale for part in parts]).amax().reshape(1)
    scales = [
        (part.scales.float() * (part.global_scale / largest)).clamp(min=2.0**-9).to(torch.float8_e4m3fn)
        for part in parts
    ]
    return NvFp4(torch.cat([part.codes for part in parts]), torch.cat(scales), largest)
