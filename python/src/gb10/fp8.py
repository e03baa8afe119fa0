"""FP8 weights: E4M3 codes with one float32 scale a row, as ``gb10.kernels.fp8_gemv`` reads them.

    value = code * scale of its row

Plain torch; the reference for kernels and for the quality figures.
"""

import torch

from gb10.nvfp4.constants import UE4M3_MAX as E4M3_MAX


def encode(tensor: torch.Tensor) -> torch.Tensor:
    """Round to float8_e4m3fn, ties to even; what lies beyond +-448 saturates."""
    return tensor.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (float8_e4m3fn ``[N, K]``) and scales (float32 ``[N]``) of a float weight ``[N, K]``.

    The largest value of a row becomes +-448; a row of zeros has the scale 1.
    """
    wide = weight.to(torch.float32)
    scales = wide.abs().amax(-1) / E4M3_MAX
    scales = torch.where(scales == 0, 1.0, scales)
    return encode(wide / scales[:, None]), scales


def dequantize(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Values (float32 ``[N, K]``) of ``codes`` (float8_e4m3fn) and ``scales`` (float32 ``[N]``)."""
    return codes.to(torch.float32) * scales[:, None]
