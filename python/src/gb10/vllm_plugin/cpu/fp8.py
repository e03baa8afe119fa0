"""Quantisation to FP8 with a scale that is known, for weights that vLLM puts into one layer at load."""

from typing import Any

import torch
from vllm import _custom_ops


def quantize(x: torch.Tensor, scale: torch.Tensor, output: torch.Tensor | None = None) -> torch.Tensor:
    """Return x / scale in float8_e4m3fn, saturated, in `output` where that is given.

    x: [M, N] float; scale: one float32. As vLLM's GPU kernel does, x is multiplied by the reciprocal.
    """
    largest = torch.finfo(torch.float8_e4m3fn).max
    codes = (x.to(torch.float32) * scale.to(torch.float32).reciprocal()).clamp(-largest, largest)
    codes = codes.to(torch.float8_e4m3fn)
    return codes if output is None else output.copy_(codes)


def install() -> None:
    """Answer `scaled_fp8_quant` with one scale for the whole tensor. All else goes on to vLLM's operators."""
    original = _custom_ops.scaled_fp8_quant

    def scaled_fp8_quant(
        input: torch.Tensor, scale: torch.Tensor | None = None, *rest: Any, **more: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if scale is None or scale.numel() != 1 or rest or more.keys() - {"output"}:
            answer: tuple[torch.Tensor, torch.Tensor] = original(input, scale, *rest, **more)
            return answer
        return quantize(input, scale, **more), scale

    _custom_ops.scaled_fp8_quant = scaled_fp8_quant
