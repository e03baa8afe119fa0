"""Quantise to NVFP4 and back, in the convention of ModelOpt checkpoints.

    global scale  = amax(tensor) / (6 * 448)                       `weight_scale_2`, `input_scale`
    block scale   = UE4M3(amax(block) / (6 * global scale))        `weight_scale`
    code          = E2M1(value / (block scale * global scale))     `weight`, two codes per byte

All arithmetic is float32. What comes out is rounded once, to the wanted dtype.
"""

from typing import NamedTuple

import torch

from gb10.nvfp4 import e2m1, packing, ue4m3
from gb10.nvfp4.constants import BLOCK_SIZE, E2M1_MAX, GLOBAL_SCALE_DIVISOR, UE4M3_MAX, UE4M3_MIN_POSITIVE

GlobalScale = float | torch.Tensor

_MINUS_ZERO = 0x80
"""The one byte with a sign bit that is no negative scale."""


class NvFp4Tensor(NamedTuple):
    """One quantised tensor of logical shape `[..., K]`."""

    packed: torch.Tensor
    """uint8 `[..., K // 2]`, two E2M1 codes per byte, even index in the low nibble."""

    block_scales: torch.Tensor
    """float8_e4m3fn `[..., K // 16]`, linear layout."""

    global_scale: torch.Tensor
    """float32, one number (shape `[]`) or one per leading index."""


def global_scale_for(amax: float | torch.Tensor) -> torch.Tensor:
    """Give the float32 global scale for the largest magnitude `amax`: amax / 2688, or 1 where `amax` is 0.

    Numbers so small that the quotient is not a normal float32 give the smallest normal one, subnormal
    numbers too.

    Raises ValueError when an `amax` is negative, NaN or (as float32) infinite.
    """
    largest = torch.as_tensor(amax, dtype=torch.float32)
    if not bool((largest.isfinite() & (largest >= 0)).all()):
        raise ValueError("a largest magnitude must be a finite number that is not negative")
    scale = (largest / GLOBAL_SCALE_DIVISOR).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(largest == 0, 1.0, scale)


def quantize(w: torch.Tensor, global_scale: GlobalScale | None = None) -> NvFp4Tensor:
    """Quantise weights `w` of shape `[..., K]`, K a multiple of 16, any floating dtype but float64.

    `global_scale` is one number or a tensor whose shape is a prefix of that of `w` (one per expert, say);
    it must be positive. Without one, a single scale is taken from the largest magnitude in `w`.

    Block scales are kept between the smallest positive and the largest UE4M3 number. So a block is never
    flushed to zero as a whole, and an all-zero block has a scale that can be divided by.

    Raises TypeError when `w` is not floating point, or float64: that would be rounded twice. Raises
    ValueError when K does not fit, when `w` holds NaN or infinity, and when the global scale is not a
    positive number or does not fit the shape of `w`.
    """
    blocks, scale, spread = blocks_of(w, global_scale)
    block_amax = blocks.abs().amax(dim=-1)
    wanted = (block_amax / (E2M1_MAX * spread)).clamp(UE4M3_MIN_POSITIVE, UE4M3_MAX)
    block_scales = ue4m3.encode(wanted).view(torch.float8_e4m3fn)
    steps = block_scales.to(torch.float32) * spread
    codes = e2m1.encode(blocks / steps.unsqueeze(-1))
    return NvFp4Tensor(packing.pack(codes.flatten(-2)), block_scales, scale)


def blocks_of(
    w: torch.Tensor, global_scale: GlobalScale | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What every way to quantise weights begins with: blocks, global scale, and that scale spread over them.

    The blocks are float32 `[..., K // 16, 16]`. Raises as `quantize` does.
    """
    blocks = _as_blocks(w)
    if not bool(blocks.isfinite().all()):
        raise ValueError("weights hold NaN or infinity, NVFP4 cannot store them")
    if global_scale is None:
        scale = global_scale_for(blocks.abs().max() if blocks.numel() else 0.0)
    else:
        scale = torch.as_tensor(global_scale, dtype=torch.float32, device=w.device)
        if not bool((scale.isfinite() & (scale > 0)).all()):
            raise ValueError("the global scale must be a positive number")
    return blocks, scale, _spread(scale, w.shape)


def dequantize(
    packed: torch.Tensor,
    block_scales: torch.Tensor,
    global_scale: GlobalScale,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Give the numbers that packed NVFP4 stands for.

    `packed` is uint8 `[..., K // 2]`. `block_scales` is `[..., K // 16]`, float8_e4m3fn or its bytes as
    uint8, linear layout. `global_scale` is one number or a tensor whose shape is a prefix of that of
    `packed`. Returns `[..., K]`.

    A value is `code * (block scale * global scale)`, the products in float32 in this order, then rounded
    once to `dtype`. vLLM's `dequantize_to_dtype` computes the same bits. A block scale that is NaN (0x7F)
    makes its block NaN, and -0 (0x80) counts as 0.

    Raises TypeError for wrong dtypes (`dtype` has at least 16 bits: one scale's range does not fit a
    float8), ValueError when the shapes do not fit each other or a block scale is negative.
    """
    if block_scales.dtype not in (torch.uint8, torch.float8_e4m3fn):
        raise TypeError(f"block scales are float8_e4m3fn or uint8, got {block_scales.dtype}")
    if not dtype.is_floating_point or dtype.itemsize == 1:
        raise TypeError(f"NVFP4 stands for numbers of 16 bits or more, not for {dtype}")
    if block_scales.numel() and int(block_scales.view(torch.uint8).max()) > _MINUS_ZERO:
        raise ValueError("UE4M3 has no sign: a block scale is negative")
    values = packing.decode_bytes(packed)
    if values.shape != (*block_scales.shape[:-1], block_scales.shape[-1:].numel() * BLOCK_SIZE):
        raise ValueError(
            f"packed weights {list(packed.shape)} do not fit block scales {list(block_scales.shape)}: "
            f"each scale covers {BLOCK_SIZE} values, {BLOCK_SIZE // packing.CODES_PER_BYTE} bytes of a row"
        )
    scale = torch.as_tensor(global_scale, dtype=torch.float32, device=packed.device)
    steps = block_scales.view(torch.float8_e4m3fn).to(torch.float32) * _spread(scale, packed.shape)
    blocks = values.reshape(*block_scales.shape, BLOCK_SIZE)
    return blocks.mul_(steps.unsqueeze(-1)).flatten(-2).to(dtype)


def fake_quantize_activations(x: torch.Tensor, input_scale: GlobalScale) -> torch.Tensor:
    """Quantise activations to NVFP4 and straight back, as the W4A4 path of a GPU does.

    `x` is `[..., K]` in float32, bfloat16 or float16, K a multiple of 16. `input_scale` is the checkpoint's
    calibrated global scale, amax / (6 * 448), one number. Returns the same shape and dtype.

    A block whose scale rounds to zero becomes zero. A block whose scale would be above 448 is clipped to
    it, which is what happens to activations that are larger than the calibrated amax. NaN spreads over its
    block.

    The order of the float32 operations is that of the vLLM kernels, which work with the reciprocal:

        block scale = UE4M3((1 / input_scale) * (amax * (1 / 6)))
        code        = E2M1(x * (1 / (block scale * (1 / (1 / input_scale)))))

    Raises TypeError for other dtypes, ValueError when K does not fit or the scale is not one positive
    number.
    """
    if x.is_floating_point() and x.element_size() == 1:
        raise TypeError(f"activations are float32, bfloat16 or float16, got {x.dtype}")
    blocks = _as_blocks(x)
    scale = torch.as_tensor(input_scale, dtype=torch.float32, device=x.device)
    if scale.numel() != 1 or not bool((scale.isfinite() & (scale > 0)).all()):
        raise ValueError("the input scale must be one positive number")
    inverse = scale.reshape(()).reciprocal()
    wanted = inverse * (blocks.abs().amax(dim=-1, keepdim=True) * (1.0 / E2M1_MAX))
    block_scales = ue4m3.decode(ue4m3.encode(wanted))
    multiplier = torch.where(block_scales == 0, 0.0, (block_scales * inverse.reciprocal()).reciprocal())
    values = e2m1.decode(e2m1.encode(blocks * multiplier))
    return (values * (block_scales / inverse)).flatten(-2).to(x.dtype)


def _as_blocks(x: torch.Tensor) -> torch.Tensor:
    """View `[..., K]` as float32 `[..., K // 16, 16]`."""
    if not x.is_floating_point():
        raise TypeError(f"NVFP4 quantises floating point tensors, got {x.dtype}")
    if x.dtype == torch.float64:
        raise TypeError("float64 would be rounded twice, to float32 and to NVFP4: make it float32 first")
    if x.ndim == 0 or x.shape[-1] % BLOCK_SIZE or x.shape[-1] == 0:
        raise ValueError(f"the last dimension must be a multiple of {BLOCK_SIZE}, got shape {list(x.shape)}")
    return x.to(torch.float32).reshape(*x.shape[:-1], x.shape[-1] // BLOCK_SIZE, BLOCK_SIZE)


def _spread(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Append dimensions of size 1: a scale per leading index then broadcasts against a tensor of `shape`."""
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.ndim >= len(shape) or scale.shape != shape[: scale.ndim]:
        raise ValueError(
            f"a global scale of shape {list(scale.shape)} does not fit a tensor of {list(shape)}"
        )
    return scale.reshape(*scale.shape, *([1] * (len(shape) - scale.ndim)))
