"""Residual + RMSNorm before a layer's first half, for any number of tokens in one launch.

    vllm::gb10_add_norm(x, residual, weight, epsilon, plus_one) -> (normed, x + residual)

torch.compile would fuse the same into a Triton kernel. That one is no programmatic launch: it begins when the
experts have ended, and the projection after it, which could read its weights meanwhile, when it has.
"""

from typing import Any

import torch
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm
from vllm.utils.torch_utils import direct_register_custom_op

from gb10.vllm_plugin.cuda import dispatch

ATTRIBUTE = "gb10_norm"
"""Of a decoder layer: whether our kernel does the norm before its first half."""

UNIT, MOST_COLUMNS = 8, 16384
"""What ``gb10::add_norm`` takes: a multiple of, and at most, so many columns."""


def add_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float, plus_one: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Our kernel, see ``gb10.kernels.add_norm``. x, residual: ``[M, H]``; both results are new."""
    x, residual = x.contiguous(), residual.contiguous()
    normed, total = torch.empty_like(x), torch.empty_like(x)
    if x.shape[0]:
        torch.ops.gb10.add_norm(x, residual, weight, epsilon, plus_one, normed, total)
        dispatch.ran("norm", "add_norm", x.shape[0])
    return normed, total


def _add_norm_fake(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float, plus_one: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), torch.empty_like(residual)


def input_norm(
    layer: Any, hidden_states: torch.Tensor, residual: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Residual and norm before the first half of a decoder layer; the first layer has no residual. Traced."""
    norm = layer.input_layernorm
    if residual is None:
        return norm(hidden_states), hidden_states
    if not layer.gb10_norm:
        return norm(hidden_states, residual)  # type: ignore[no-any-return]
    given = (norm.weight, norm.variance_epsilon, isinstance(norm, GemmaRMSNorm))
    return torch.ops.vllm.gb10_add_norm(hidden_states, residual, *given)  # type: ignore[no-any-return]


def fits(norm: Any) -> bool:
    """Whether our kernel computes what a norm of vLLM does."""
    return (
        type(norm) in (GemmaRMSNorm, RMSNorm)
        and getattr(norm, "variance_size_override", None) is None
        and norm.weight.dtype in (torch.bfloat16, torch.float16)
        and norm.weight.shape[0] % UNIT == 0
        and norm.weight.shape[0] <= MOST_COLUMNS
    )


def prepare(layer: Any, name: str) -> str | None:
    """Let a loaded decoder layer that has a Block use our norm before its first half; why not, or None."""
    if layer.gb10_block is None:
        return "their second half is vLLM's own"
    if not fits(layer.input_layernorm):
        return f"a {type(layer.input_layernorm).__name__} that is not like ours"
    object.__setattr__(layer, ATTRIBUTE, True)
    return None


def install() -> None:
    """Register the operator."""
    direct_register_custom_op(
        "gb10_add_norm", add_norm, fake_impl=_add_norm_fake, tags=(torch.Tag.needs_fixed_stride_order,)
    )
