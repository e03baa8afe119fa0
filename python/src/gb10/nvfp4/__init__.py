"""NVFP4, the number format: 4-bit E2M1 values, a UE4M3 block scale per 16 of them, one FP32 global scale.

A weight is stored as three tensors. `packed` holds two 4-bit codes per byte. `block_scales` holds one
float8_e4m3fn number per 16 values of a row. `global_scale` is one float32 number per tensor (or per expert).

    value = e2m1.decode(code) * block_scale * global_scale

The modules are plain torch on the CPU. They are the reference that kernels and engines are tested against.
"""

from gb10.nvfp4.constants import BLOCK_SIZE, E2M1_MAX, GLOBAL_SCALE_DIVISOR, UE4M3_MAX, UE4M3_MIN_POSITIVE
from gb10.nvfp4.fused import power_of_two
from gb10.nvfp4.layout import swizzle_128x4, unswizzle_128x4
from gb10.nvfp4.packing import pack, unpack
from gb10.nvfp4.quantize import (
    NvFp4Tensor,
    dequantize,
    fake_quantize_activations,
    global_scale_for,
    quantize,
)
from gb10.nvfp4.search import quantize_searched

__all__ = [
    "BLOCK_SIZE",
    "E2M1_MAX",
    "GLOBAL_SCALE_DIVISOR",
    "UE4M3_MAX",
    "UE4M3_MIN_POSITIVE",
    "NvFp4Tensor",
    "dequantize",
    "fake_quantize_activations",
    "global_scale_for",
    "pack",
    "power_of_two",
    "quantize",
    "quantize_searched",
    "swizzle_128x4",
    "unpack",
    "unswizzle_128x4",
]
