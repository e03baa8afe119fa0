"""Fused weights: several in one tensor, each with a global scale of its own, brought to one scale.

A kernel takes one global scale for the whole tensor. Block scales can take up what two scales differ by where
no E4M3 number has to be rounded for it: a power of two mostly, away from the ends of the range.
"""

from collections.abc import Sequence

import torch

from gb10.nvfp4.constants import UE4M3_MAX

_AT_ONCE = 1 << 22
"""Block scales that are worked on together: a few copies of them in float32 are needed meanwhile."""


def power_of_two(scale: torch.Tensor) -> torch.Tensor:
    """The smallest power of two that is not below each float32 `scale`, above 0.

    With such global scales tensors can be put together: to change one for another changes the exponents of
    block scales alone, as long as they are normal E4M3 numbers. They cost nothing in accuracy: a block scale
    is a floating point number.
    """
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).to(exponent.dtype))


def share_scale(block_scales: torch.Tensor, scales: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Bring the parts of each tensor to one global scale, where not a single value changes by that.

    `block_scales` is float8_e4m3fn `[E, N, K // 16]`: E tensors (one per expert, say) whose N rows belong to
    P parts of `rows` rows each, one after the other. `scales` is float32 `[E, P]`, the global scale of each
    part. Both are changed in place. Returns bool `[E]`: the tensors whose parts have one scale now. The
    others are as they were.

    "Not a single value": block scale times global scale gives the same float32 number as before, bit for bit.

    Raises TypeError for other dtypes and ValueError when the shapes do not fit each other.
    """
    if block_scales.dtype != torch.float8_e4m3fn or scales.dtype != torch.float32:
        raise TypeError(
            f"float8_e4m3fn block scales and float32 scales, got {block_scales.dtype}, {scales.dtype}"
        )
    count = block_scales.shape[0]
    if block_scales.ndim != 3 or block_scales.shape[1] != sum(rows) or scales.shape != (count, len(rows)):
        raise ValueError(
            f"block scales {list(block_scales.shape)} and scales {list(scales.shape)} "
            f"do not fit parts of {list(rows)} rows"
        )
    shared = (scales == scales[:, :1]).all(1)
    step = max(1, _AT_ONCE // max(1, block_scales[:1].numel()))
    for chosen in (~shared).nonzero().flatten().split(step):
        shared[chosen] = _share(block_scales, scales, rows, chosen)
    return shared


def _share(
    block_scales: torch.Tensor, scales: torch.Tensor, rows: Sequence[int], chosen: torch.Tensor
) -> torch.Tensor:
    """Do it for the tensors with the numbers `chosen`; say for which it worked."""
    # Indices of float8 tensors are not implemented everywhere, of bytes they are.
    as_bytes = block_scales.view(torch.uint8)
    stored = as_bytes[chosen]
    own = scales[chosen]
    largest = torch.stack([part.amax((1, 2)) for part in stored.split(list(rows), dim=1)], dim=1)
    largest_step = (own * largest.view(torch.float8_e4m3fn).float()).amax(1)
    repeats = torch.tensor(rows, device=scales.device)
    steps = stored.view(torch.float8_e4m3fn).float() * own.repeat_interleave(repeats, dim=1).unsqueeze(-1)
    done = torch.zeros_like(chosen, dtype=torch.bool)
    # Candidates: a part's own scale times a power of two. Of these the smallest that no block overflows with:
    # small block scales have fewer bits.
    for anchor in own.unbind(1):
        mantissa, exponent = torch.frexp(largest_step / (anchor * UE4M3_MAX))
        target = torch.ldexp(anchor, exponent - (mantissa == 0.5).to(exponent.dtype))
        moved = (steps / target[:, None, None]).to(torch.float8_e4m3fn)
        same = (moved.float() * target[:, None, None] == steps).flatten(1).all(1) & ~done
        as_bytes[chosen[same]] = moved.view(torch.uint8)[same]
        scales[chosen[same]] = target[same, None]
        done |= same
    return done
