"""FP8 weights: E4M3 codes with one float32 scale a row, as ``gb10.kernels.fp8_gemv`` reads them.

    value = code * scale of its row

Plain torch; the reference for kernels and for the quality figures.
"""

import torch

from gb10.nvfp4.constants import UE4M3_MAX as E4M3_MAX


def encode(tensor: torch.Tensor) -> torch.Tensor:
    """Round to float8_e4m3fn, ties to even; what lies beyond +-448 saturates, NaN stays NaN.

    Raises TypeError for float64: it would be rounded twice.
    """
    return _as_float32(tensor).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (float8_e4m3fn ``[N, K]``) and scales (float32 ``[N]``) of a float weight ``[N, K]``.

    The largest value of a row becomes +-448; a row of zeros has the scale 1, and one of numbers so small
    that their scale would not be a normal float32 the smallest normal one.

    Raises TypeError for float64, as `encode` does.
    """
    wide = _as_float32(weight)
    largest = wide.abs().amax(-1)
    # On a GPU torch multiplies by the reciprocal of a number, which rounds twice; it divides by a tensor.
    quotient = largest / torch.full_like(largest, E4M3_MAX)
    scales = torch.where(largest == 0, 1.0, quotient.clamp(min=torch.finfo(torch.float32).tiny))
    return encode(wide / scales[:, None]), scales


def dequantize(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Values (float32 ``[N, K]``) of ``codes`` (float8_e4m3fn) and ``scales`` (float32 ``[N]``)."""
    return codes.to(torch.float32) * scales[:, None]


def _as_float32(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype == torch.float64:
        raise TypeError("float64 would be rounded twice, to float32 and to E4M3: make it float32 first")
    return tensor.to(torch.float32)
