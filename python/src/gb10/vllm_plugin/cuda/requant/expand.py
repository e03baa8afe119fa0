"""NVFP4 to 16 bit on a GPU, in Triton: what the matrix product of many tokens reads."""

import torch
from vllm.triton_utils import tl, triton

from gb10.nvfp4.constants import BLOCK_SIZE

_PAIRS = BLOCK_SIZE // 2
_BLOCKS = 128


@triton.jit  # type: ignore[untyped-decorator]
def _expand(codes, scales, global_scale, out, count, BLOCKS: tl.constexpr, PAIRS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each program: BLOCKS blocks of 16 values. All tensors are dense, so rows do not matter."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < count
    scale = tl.load(scales + block, mask=inside, other=0).to(tl.float8e4nv, bitcast=True)
    step = scale.to(tl.float32) * tl.load(global_scale)
    pair = tl.arange(0, PAIRS)
    at = block[:, None] * PAIRS + pair[None, :]
    packed = tl.load(codes + at, mask=inside[:, None], other=0).to(tl.int32)
    low = _value(packed & 15) * step[:, None]
    high = _value(packed >> 4) * step[:, None]
    both = tl.interleave(low, high).to(out.dtype.element_ty)
    column = tl.arange(0, 2 * PAIRS)
    tl.store(out + block[:, None] * (2 * PAIRS) + column[None, :], both, mask=inside[:, None])


@triton.jit
def _value(code):  # type: ignore[no-untyped-def]
    """E2M1 as float32: exponent 0 counts halves, else (2 + mantissa) * 2^(exponent - 2)."""
    exponent = (code >> 1) & 3
    mantissa = code & 1
    small = mantissa.to(tl.float32) * 0.5
    large = (2 + mantissa).to(tl.float32) * (1 << exponent).to(tl.float32) * 0.25
    magnitude = tl.where(exponent == 0, small, large)
    return tl.where(code >= 8, -magnitude, magnitude)


def expand(
    codes: torch.Tensor, scales: torch.Tensor, global_scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """The values of ``codes`` uint8 ``[N, K / 2]``, ``scales`` E4M3 ``[N, K / 16]``: ``dtype`` ``[N, K]``.

    The same bits as `gb10.nvfp4.dequantize`: the product of scales and then with the code in float32, rounded
    once. All are contiguous, on one CUDA device; ``global_scale`` is one float32 number.
    """
    out = torch.empty(codes.shape[0], 2 * codes.shape[1], dtype=dtype, device=codes.device)
    count = scales.numel()
    _expand[(triton.cdiv(count, _BLOCKS),)](
        codes, scales.view(torch.uint8), global_scale, out, count, BLOCKS=_BLOCKS, PAIRS=_PAIRS
    )
    return out
