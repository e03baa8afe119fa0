"""Gated DeltaNet layers to measure: random weights and states, the float64 reference, vLLM's kernels."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from gb10_lab.kernel_bench.shapes import Gdn
from gb10_lab.kernel_bench.timing import Version

EPSILON = 1e-6
WIDTH = 4


class Layer(NamedTuple):
    """A layer's parameters and states; slot 0 belongs to nobody, sequence n has slot n + 1."""

    conv_weight: torch.Tensor
    """BF16 ``[channels, 4]``."""
    A_log: torch.Tensor
    dt_bias: torch.Tensor
    norm_weight: torch.Tensor
    state: torch.Tensor
    """``[slots, value heads, value size, key size]``."""
    conv_state: torch.Tensor
    """BF16 ``[slots, channels, 3]``, channels next to each other."""


def restoring(copies: list[Layer]) -> Callable[[], None]:
    """What puts the states of the first and the last layer back to what they are now: a call changes them."""
    saved = [(each, each.state.clone(), each.conv_state.clone()) for each in (copies[0], copies[-1])]

    def restore() -> None:
        for each, state, conv_state in saved:
            each.state.copy_(state)
            each.conv_state.copy_(conv_state)

    return restore


def layer(shape: Gdn, sequences: int, device: torch.device, dtype: torch.dtype) -> Layer:
    """Draw a layer with states of that dtype for so many sequences."""
    heads, slots = shape.value_heads, sequences + 1

    def normal(*size: int, spread: float) -> torch.Tensor:
        return torch.randn(size, device=device) * spread

    convs = normal(slots, WIDTH - 1, shape.channels, spread=1.0).to(torch.bfloat16)
    return Layer(
        normal(shape.channels, WIDTH, spread=0.4).to(torch.bfloat16),
        torch.log(torch.rand(heads, device=device) * 15 + 1),
        (torch.rand(heads, device=device) * 4 - 4).to(torch.bfloat16),
        1 + normal(shape.value_size, spread=0.1),
        normal(slots, heads, shape.value_size, shape.key_size, spread=0.1).to(dtype),
        convs.transpose(1, 2),
    )


def slots_of(sequences: int, device: torch.device) -> torch.Tensor:
    """int32 ``[sequences]``: 1, 2, 3, ..."""
    return torch.arange(1, sequences + 1, dtype=torch.int32, device=device)


def split(shape: Gdn, mixed: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The channels (all q, k, v), z, b and a of the outputs of the projections; columns may follow those."""
    mixed = mixed[:, : shape.columns]
    if not shape.interleaved:
        return tuple(mixed.split([shape.channels, shape.values, shape.value_heads, shape.value_heads], dim=1))
    ratio = shape.value_heads // shape.key_heads
    qkvz, ba = mixed.split([shape.channels + shape.values, 2 * shape.value_heads], dim=1)
    sizes = [shape.key_size, shape.key_size, ratio * shape.value_size, ratio * shape.value_size]
    grouped = qkvz.unflatten(1, (shape.key_heads, -1)).split(sizes, dim=2)
    q, k, v, z = (part.flatten(1) for part in grouped)
    b, a = (part.flatten(1) for part in ba.unflatten(1, (shape.key_heads, -1)).chunk(2, dim=2))
    return torch.cat((q, k, v), dim=1), z, b, a


def reference(shape: Gdn, mixed: torch.Tensor, weights: Layer) -> torch.Tensor:
    """One token of each sequence in float64, rounded to BF16 where the kernel rounds; states stay."""
    n, group = mixed.shape[0], shape.value_heads // shape.key_heads
    now, z, b, a = split(shape, mixed)
    window = torch.cat((weights.conv_state[1 : n + 1], now.unsqueeze(2)), dim=2).double()
    y = F.silu((window * weights.conv_weight.double()).sum(2)).to(mixed.dtype).double()
    q, k, v = y.split([shape.keys, shape.keys, shape.values], dim=1)

    def unit(x: torch.Tensor) -> torch.Tensor:
        heads = x.view(n, shape.key_heads, shape.key_size)
        heads = heads * (heads.square().sum(2, keepdim=True) + 1e-6).rsqrt()
        return heads.repeat_interleave(group, dim=1)

    decay = torch.exp(-weights.A_log.double().exp() * F.softplus(a.double() + weights.dt_bias.double()))
    state = weights.state[1 : n + 1].double() * decay[:, :, None, None]
    query, key = unit(q) * shape.key_size**-0.5, unit(k)
    values = v.view(n, shape.value_heads, shape.value_size)
    change = (values - torch.einsum("nhvk,nhk->nhv", state, key)) * b.double().sigmoid().unsqueeze(2)
    state = state + torch.einsum("nhv,nhk->nhvk", change, key)
    o = torch.einsum("nhvk,nhk->nhv", state, query).to(mixed.dtype).double()
    o = o * (o.square().mean(2, keepdim=True) + EPSILON).rsqrt() * weights.norm_weight.double()
    return o.flatten(1) * F.silu(z.double())


def vllm_unavailable() -> str:
    """Why vLLM's kernels cannot be used here, in one line; empty when they can."""
    try:
        _vllm()
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return ""


def vllm_version(shape: Gdn, mixed: torch.Tensor, copies: list[Layer]) -> Version:
    """vLLM's decode: zeros for the output, convolution, recurrent step, gated norm: four launches.

    The split of an interleaved layout into channels, which vLLM's compiled code does before, is not counted.
    """
    convolve, recur, norm = _vllm()
    n, scale = mixed.shape[0], shape.key_size**-0.5
    now, z, b, a = (part.contiguous() for part in split(shape, mixed))
    z = z.view(-1, shape.value_size)
    work = torch.empty_like(now)
    slots = slots_of(n, mixed.device)
    out = torch.empty(n, shape.values, dtype=mixed.dtype, device=mixed.device)

    def run(i: int) -> torch.Tensor:
        w = copies[i]
        core = torch.zeros(n, 1, shape.value_heads, shape.value_size, dtype=mixed.dtype, device=mixed.device)
        y = convolve(
            now,
            w.conv_state,
            w.conv_weight,
            None,
            "silu",
            conv_state_indices=slots,
            validate_data=False,
            out=work,
        )
        recur(
            mixed_qkv=y,
            a=a,
            b=b,
            A_log=w.A_log,
            dt_bias=w.dt_bias,
            scale=scale,
            initial_state=w.state,
            out=core,
            ssm_state_indices=slots,
            use_qk_l2norm_in_kernel=True,
        )
        norm(
            core.view(z.shape),
            w.norm_weight,
            None,
            EPSILON,
            z=z,
            out=out.view(z.shape),
            group_size=shape.value_size,
            norm_before_gate=True,
            is_rms_norm=True,
            activation="silu",
        )
        return out

    return Version("vllm", run, len(copies), restoring(copies))


def _vllm() -> tuple[Any, Any, Any]:
    conv = importlib.import_module("vllm.model_executor.layers.mamba.ops.causal_conv1d")
    ops = importlib.import_module("vllm.third_party.flash_linear_attention.ops")
    guard = importlib.import_module("vllm.third_party.flash_linear_attention.ops.layernorm_guard")
    recur = ops.fused_recurrent_gated_delta_rule_packed_decode
    return conv.causal_conv1d_update, recur, guard.layer_norm_fwd
