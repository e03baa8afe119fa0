"""NVFP4 quantisation of activations, bit for bit as ``gb10.nvfp4.quantize`` does it (kernels/quantize)."""

from __future__ import annotations

import torch

from gb10.kernels.library import load
from gb10.nvfp4.constants import BLOCK_SIZE
from gb10.nvfp4.layout import padded_shape

Quantized = tuple[torch.Tensor, torch.Tensor]
"""Packed codes (uint8) and block scales (float8_e4m3fn)."""


def quantize_nvfp4(
    x: torch.Tensor,
    global_scale: torch.Tensor,
    *,
    swizzled: bool = False,
    packed: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
) -> Quantized:
    """Quantise ``x`` to NVFP4 with a given global scale.

    ``x`` is bfloat16, float16 or float32 ``[..., K]``, K a multiple of 16. ``global_scale`` is one float32
    number in device memory, ModelOpt's ``input_scale``: the largest magnitude expected, divided by 2688. It
    must be positive; it is not checked, as that would wait for the GPU.

    Gives ``(packed, scales)``. ``packed`` is uint8 ``[..., K / 2]``, the even k in the low nibble. ``scales``
    is float8_e4m3fn ``[..., K / 16]``; with ``swizzled`` it is what ``gb10.nvfp4.swizzle_128x4`` makes of all
    rows together, ``[rows rounded up to 128, K / 16 rounded up to 4]``, the padding zero. Both are written in
    place when they are given.

    The bits are those of ``gb10.nvfp4.quantize``. Where that refuses, its formula holds: a block with a NaN
    gets the scale NaN and the codes 7, a block with an infinity the scale 448. All tensors are contiguous and
    on one CUDA device, ``x`` at a multiple of 16 bytes, ``packed`` at a multiple of 8, swizzled ``scales`` at
    a multiple of 4. Bad arguments give RuntimeError, which names the argument.
    """
    load()
    packed, scales = _outputs(x, x.shape[-1:].numel(), swizzled, packed, scales)
    torch.ops.gb10.quantize_nvfp4(x, global_scale, swizzled, packed, scales)
    return packed, scales


def silu_mul_quantize_nvfp4(
    x: torch.Tensor,
    global_scale: torch.Tensor,
    *,
    swizzled: bool = False,
    packed: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
) -> Quantized:
    """Quantise ``silu(gate) * up`` to NVFP4, where ``x`` is ``[..., 2 K]``: gate, then up.

    The product is computed in float32 and rounded to the dtype of ``x`` before it is quantised, as vLLM's
    ``silu_and_mul_nvfp4_quant`` does. silu comes from the GPU's exponential and reciprocal units: the
    product's relative error before that rounding is at most 2^-20 + ``|gate|`` 2^-23, and silu is -0 below
    -87.3.

    The rest, and the shapes for K, is as in ``quantize_nvfp4``.
    """
    load()
    packed, scales = _outputs(x, x.shape[-1:].numel() // 2, swizzled, packed, scales)
    torch.ops.gb10.silu_mul_quantize_nvfp4(x, global_scale, swizzled, packed, scales)
    return packed, scales


def quantize_nvfp4_experts(
    x: torch.Tensor,
    global_scales: torch.Tensor,
    expert_offsets: torch.Tensor,
    scale_offsets: torch.Tensor,
    scale_rows: int | None = None,
    *,
    packed: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
) -> Quantized:
    """Quantise rows that are grouped by expert, each group with its own global scale.

    ``x`` is bfloat16, float16 or float32 ``[rows, K]``, K a multiple of 16. Expert i has the rows
    ``expert_offsets[i]`` to ``expert_offsets[i + 1] - 1`` and the global scale ``global_scales[i]`` (float32
    ``[E]``). Its block scales begin at row ``scale_offsets[i]`` of ``scales``, a multiple of 128. Both
    offsets are int32 ``[E + 1]``, do not fall, and leave every expert room for its rows.

    ``packed`` is uint8 ``[rows, K / 2]``. ``scales`` is float8_e4m3fn ``[scale_rows, K / 16 rounded up to
    4]`` in the swizzled layout, ``scale_rows`` a multiple of 128. Rows between an expert's last row and the
    next expert's first are written as zero; rows from ``scale_offsets[E]`` on, and rows of ``packed`` from
    ``expert_offsets[E]`` on, are left as they are. Without ``scales``, ``scale_rows`` says how many to make;
    without both there is room for the worst case, ``rows + 127 E`` rounded up to 128.

    The rest is as in ``quantize_nvfp4``.
    """
    load()
    if scales is None:
        most = x.shape[0] + 127 * global_scales.shape[0] if scale_rows is None else scale_rows
        shape = padded_shape(most, x.shape[-1] // BLOCK_SIZE)
        scales = torch.empty(shape, dtype=torch.float8_e4m3fn, device=x.device)
    if packed is None:
        packed = torch.empty((*x.shape[:-1], x.shape[-1] // 2), dtype=torch.uint8, device=x.device)
    torch.ops.gb10.quantize_nvfp4_experts(x, global_scales, expert_offsets, scale_offsets, packed, scales)
    return packed, scales


def _outputs(
    x: torch.Tensor, k: int, swizzled: bool, packed: torch.Tensor | None, scales: torch.Tensor | None
) -> Quantized:
    leading = x.shape[:-1]
    if packed is None:
        packed = torch.empty((*leading, k // 2), dtype=torch.uint8, device=x.device)
    if scales is None:
        columns = k // BLOCK_SIZE
        shape = padded_shape(leading.numel(), columns) if swizzled else (*leading, columns)
        scales = torch.empty(shape, dtype=torch.float8_e4m3fn, device=x.device)
    return packed, scales
