"""Quantise to NVFP4 with the block scales that leave the least squared error. The format stays the same.

The usual scale of a block, amax / 6, puts its largest value on 6. Between 4 and 6 there is no number, so it
is often better to let the largest value be clipped a little, or to put it on 4. Here each block tries the
E4M3 numbers near amax / 6 and takes the one whose sixteen rounded values lie nearest to the sixteen given.
No data is needed, and what comes out is read by every kernel as before.
"""

import torch

from gb10.nvfp4 import e2m1, packing, ue4m3
from gb10.nvfp4.constants import BLOCK_SIZE, E2M1_MAX, UE4M3_MAX, UE4M3_MIN_POSITIVE
from gb10.nvfp4.quantize import GlobalScale, NvFp4Tensor, blocks_of

BELOW, ABOVE = 3, 6
"""How many E4M3 numbers below and above amax / 6 are tried. Eight of them are a factor of two. More bring
nothing: wider windows were tried on normal and heavy-tailed numbers and on the testbed's weights."""

_AT_ONCE = 1 << 18
"""Blocks that are worked on together: some copies of their values in float32 are needed meanwhile."""

_FIRST, _LAST = 0x01, 0x7E
"""Bytes of the smallest positive and the largest UE4M3 number."""


def quantize_searched(w: torch.Tensor, global_scale: GlobalScale | None = None) -> NvFp4Tensor:
    """As `gb10.nvfp4.quantize`, with searched block scales: the same arguments, result, and errors.

    No block has a larger squared error than `quantize` leaves it; of equally good scales the one nearest to
    amax / 6 is taken, and sums are in a fixed order, so the result is the same everywhere. It works on the
    device of `w`, in pieces: beside the result and a float32 copy of `w` it needs some 100 MB.
    """
    blocks, scale, spread = blocks_of(w, global_scale)
    steps = spread.expand(blocks.shape[:-1]).reshape(-1)
    flat = blocks.reshape(-1, BLOCK_SIZE)
    scales = torch.empty(flat.shape[0], dtype=torch.uint8, device=w.device)
    codes = torch.empty(flat.shape, dtype=torch.uint8, device=w.device)
    for first in range(0, flat.shape[0], _AT_ONCE):
        piece = slice(first, first + _AT_ONCE)
        scales[piece], codes[piece] = _best(flat[piece], steps[piece])
    packed = packing.pack(codes.reshape(w.shape))
    return NvFp4Tensor(packed, scales.view(torch.float8_e4m3fn).reshape(blocks.shape[:-1]), scale)


def _best(blocks: torch.Tensor, global_scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale bytes `[B]` and codes `[B, 16]` of float32 `blocks` `[B, 16]` with their global scales `[B]`."""
    wanted = blocks.abs().amax(dim=-1) / (E2M1_MAX * global_scales)
    middle = ue4m3.encode(wanted.clamp(UE4M3_MIN_POSITIVE, UE4M3_MAX)).to(torch.int16)
    best = middle
    codes, least = _rounded(blocks, middle, global_scales)
    # From the middle outwards: a scale further away must be better, not as good.
    for offset in sorted(range(-BELOW, ABOVE + 1), key=abs)[1:]:
        tried = (middle + offset).clamp(_FIRST, _LAST)
        found, error = _rounded(blocks, tried, global_scales)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, tried, best)
        codes = torch.where(better[:, None], found, codes)
    return best.to(torch.uint8), codes


def _rounded(
    blocks: torch.Tensor, scale_bytes: torch.Tensor, global_scales: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes `[B, 16]` with these scales, and the squared error `[B]` that they leave."""
    steps = (ue4m3.decode(scale_bytes.to(torch.uint8)) * global_scales)[:, None]
    codes = e2m1.encode(blocks / steps)
    return codes, _sum((e2m1.decode(codes) * steps - blocks).square_())


def _sum(squares: torch.Tensor) -> torch.Tensor:
    """The sums of `[B, 16]`, in an order that no vector width changes."""
    while squares.shape[1] > 1:
        squares = squares[:, 0::2] + squares[:, 1::2]
    return squares[:, 0]
