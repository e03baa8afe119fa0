"""NVFP4 matrices times the tokens of a step, by the number of tokens: what all operators of ours share.

Up to `settings.DECODE` tokens are one launch of `nvfp4_gemv`; up to `settings.PIECES` several, which read
less than the dequantised matrix would be; more are multiplied in 16 bit (`dequant`).
"""

from collections.abc import Callable

import torch

from gb10.vllm_plugin.cuda import dequant, dispatch
from gb10.vllm_plugin.cuda.settings import DECODE, PIECES

Tensor = torch.Tensor


def plain(x: Tensor) -> Tensor:
    """``x`` as the kernels take it: contiguous, from a multiple of 16 bytes."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def by_gemv(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    global_scale: Tensor,
    bias: Tensor | None,
    operation: str,
    *,
    swizzled: bool = False,
) -> Tensor:
    """``[M, N]`` of ``x`` ``[M, K]``, `plain`, in launches of `DECODE` tokens; no other kernel for any M."""
    tokens = x.shape[0]
    out = x.new_empty(tokens, codes.shape[0])
    if tokens:
        dispatch.ran(operation, "nvfp4_gemv", tokens)
    for first in range(0, tokens, DECODE):
        piece = slice(first, first + DECODE)
        torch.ops.gb10.nvfp4_gemv(x[piece], codes, scales, global_scale, bias, swizzled, out[piece])
    return out


def w4a16(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    global_scale: Tensor,
    bias: Tensor | None,
    operation: str,
    *,
    swizzled: bool = False,
) -> Tensor:
    """``[M, N]`` of ``x`` ``[M, K]``, `plain`, whose values stay in 16 bit.

    The matrix is as `gb10.kernels.nvfp4_gemv` takes it; ``operation`` is a name of the routing table.
    """
    if x.shape[0] <= PIECES:
        return by_gemv(x, codes, scales, global_scale, bias, operation, swizzled=swizzled)
    dispatch.ran(operation, "dequantised_nvfp4", x.shape[0])
    return dequant.product(x, codes, scales, global_scale, bias, swizzled=swizzled)


def _fake(x: Tensor, codes: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape[0], codes.shape[0])


_library: torch.library.Library | None = None
_defined: set[str] = set()


def define(function: Callable[..., Tensor], arguments: str) -> None:
    """Define ``gb10::NAME(Tensor x, Tensor codes, ARGUMENTS) -> Tensor`` by a function of that name, once.

    torch.compile does not look into it, and takes ``[M, N]`` for its result.
    """
    global _library
    name = function.__name__
    if name in _defined:
        return
    _library = _library or torch.library.Library("gb10", "FRAGMENT")
    _library.define(f"{name}(Tensor x, Tensor codes, {arguments}) -> Tensor")
    # For CUDA, and for the CPU, where tests run it with stand-ins for the kernels.
    _library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gb10::{name}", _fake, lib=_library)
    _defined.add(name)
