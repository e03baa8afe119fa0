"""The gated delta rule, step by step and in chunks.

Each head keeps a state S of [key size, value size]. At every step the state decays, then the value that
the key reads from it is moved towards the new value, then the query reads it:

    S = exp(g) S;  S = S + beta k (v - k^T S)^T;  o = S^T q

`recurrent` does just that. `chunked` gives the same numbers with few large matrix products: inside a chunk
the corrections solve a unit lower triangular system (the WY form of "Parallelizing Linear Transformers with
the Delta Rule over Sequence Length", Yang et al. 2024, with the decay of "Gated Delta Networks", 2024), and
between chunks the state follows a linear recurrence with one small product for each chunk.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 64
"""Steps per chunk. A multiple of the base block of the triangular inverse."""
_BASE = 16
_NORM_EPS = 1e-6


def unit(x: Tensor) -> Tensor:
    """Scale the last dimension to length 1 (a squared length of 1e-6 is added, as in Qwen3-Next)."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _NORM_EPS)


def recurrent(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, beta: Tensor) -> Tensor:
    """Apply the rule one step at a time: slow, and plain enough to be the reference.

    `query` and `key` are [B, T, H, K], `value` is [B, T, H, V], `log_decay` (at most 0) and `beta` are
    [B, T, H]; all of one floating type. Returns [B, T, H, V]. Queries are used as given, unscaled.
    """
    batch, steps, heads, size = key.shape
    state = value.new_zeros(batch, heads, size, value.shape[-1])
    outputs = []
    for step in range(steps):
        k, v = key[:, step], value[:, step]
        state = state * log_decay[:, step].exp()[..., None, None]
        read = torch.einsum("bhk,bhkv->bhv", k, state)
        write = beta[:, step, :, None] * (v - read)
        state = state + torch.einsum("bhk,bhv->bhkv", k, write)
        outputs.append(torch.einsum("bhk,bhkv->bhv", query[:, step], state))
    return torch.stack(outputs, dim=1)


def chunked(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, beta: Tensor, *, chunk: int = CHUNK
) -> Tensor:
    """Give what `recurrent` gives, in chunks of `chunk` steps (a power of two). T may be any number."""
    steps = key.shape[1]
    pad = -steps % chunk
    if pad:
        # A padded step has beta 0 and no decay: it changes nothing.
        query, key, value = (functional.pad(x, (0, 0, 0, 0, 0, pad)) for x in (query, key, value))
        log_decay, beta = (functional.pad(x, (0, 0, 0, pad)) for x in (log_decay, beta))
    q, k, v = (_split(x, chunk) for x in (query, key, value))  # [B*H, N, C, size]
    total = _split(log_decay[..., None], chunk)[..., 0].cumsum(-1)  # [B*H, N, C]
    rate = _split(beta[..., None], chunk)  # [B*H, N, C, 1]

    ones = torch.ones(chunk, chunk, dtype=torch.bool, device=key.device)
    between = (total[..., :, None] - total[..., None, :]).masked_fill(~ones.tril(), float("-inf")).exp()
    since_start = total.exp()[..., None]
    until_end = (total[..., -1:] - total).exp()[..., None]
    over_chunk = total[..., -1].exp()[..., None, None]

    system = ((k * rate) @ k.transpose(-1, -2) * between).masked_fill(~ones.tril(-1), 0.0)
    inverse = unit_lower_inverse(system.flatten(0, 1)).view_as(system)
    new_values = inverse @ (v * rate)
    state_keys = inverse @ (k * rate * since_start)

    late_keys = (k * until_end).transpose(-1, -2)
    eye = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    states = scan(over_chunk * eye - late_keys @ state_keys, late_keys @ new_values)

    inside = (q @ k.transpose(-1, -2)) * between
    out = (q * since_start) @ states + inside @ (new_values - state_keys @ states)
    return _join(out, key.shape[0])[:, :steps]


def _split(x: Tensor, chunk: int) -> Tensor:
    """[B, T, H, D] to [B*H, T/chunk, chunk, D]."""
    batch, steps, heads, size = x.shape
    return x.transpose(1, 2).reshape(batch * heads, steps // chunk, chunk, size)


def _join(x: Tensor, batch: int) -> Tensor:
    """[B*H, N, C, D] to [B, T, H, D]."""
    return x.reshape(batch, -1, x.shape[1] * x.shape[2], x.shape[3]).transpose(1, 2)


# The two loops below are opaque operators, so that torch.compile neither unrolls nor traces them.


@torch.library.custom_op("gb10_testbed::unit_lower_inverse", mutates_args=())
def unit_lower_inverse(lower: Tensor) -> Tensor:
    """Invert I + `lower` for strictly lower triangular matrices [n, C, C], C a power of two.

    Forward substitution in blocks of 16, then inverses of doubled size from pairs of halves. Both are stable
    also where keys repeat, unlike a power series in `lower`.
    """
    count, size, _ = lower.shape
    block = min(_BASE, size)
    rows = _diagonal_blocks(lower, block)
    inverse = torch.eye(block, dtype=lower.dtype, device=lower.device).repeat(count, size // block, 1, 1)
    for row in range(1, block):
        inverse[:, :, row, :row] = -(rows[:, :, row, :row, None] * inverse[:, :, :row, :row]).sum(-2)
    while block < size:
        left, right = inverse[:, 0::2], inverse[:, 1::2]
        corner = _diagonal_blocks(lower, 2 * block)[:, :, block:, :block]
        merged = inverse.new_zeros(count, size // (2 * block), 2 * block, 2 * block)
        merged[:, :, :block, :block] = left
        merged[:, :, block:, block:] = right
        merged[:, :, block:, :block] = -(right @ corner @ left)
        inverse = merged
        block *= 2
    return inverse.view(count, size, size)


def _diagonal_blocks(matrix: Tensor, block: int) -> Tensor:
    """Give the square blocks on the diagonal: [n, C, C] to [n, C/block, block, block]."""
    count, size, _ = matrix.shape
    grid = matrix.reshape(count, size // block, block, size // block, block)
    return grid.diagonal(dim1=1, dim2=3).movedim(-1, 1)


@unit_lower_inverse.register_fake
def _(lower: Tensor) -> Tensor:
    return torch.empty_like(lower, memory_format=torch.contiguous_format)


def _save_inverse(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _inverse_backward(ctx: Any, grad: Tensor) -> Tensor:
    inverse: Tensor = ctx.saved_tensors[0]
    transposed = inverse.transpose(-1, -2)
    return -(transposed @ grad @ transposed)


unit_lower_inverse.register_autograd(_inverse_backward, setup_context=_save_inverse)


@torch.library.custom_op("gb10_testbed::scan", mutates_args=())
def scan(transition: Tensor, update: Tensor) -> Tensor:
    """Run S[n+1] = transition[n] S[n] + update[n] from S[0] = 0 and give all S[n].

    `transition` is [b, N, K, K], `update` is [b, N, K, V]; so is the result. The last step is not needed.
    """
    state = torch.zeros_like(update[:, 0])
    states = [state]
    for step in range(update.shape[1] - 1):
        state = torch.baddbmm(update[:, step], transition[:, step], state)
        states.append(state)
    return torch.stack(states, dim=1)


@scan.register_fake
def _(transition: Tensor, update: Tensor) -> Tensor:
    return torch.empty_like(update, memory_format=torch.contiguous_format)


@torch.library.custom_op("gb10_testbed::scan_backward", mutates_args=())
def _scan_backward(transition: Tensor, grad: Tensor) -> Tensor:
    """Give the gradient of every `update`: that of the state after it. The last one has none."""
    total = grad[:, -1]
    grads = [torch.zeros_like(total)]
    for step in range(grad.shape[1] - 2, -1, -1):
        grads.append(total)
        if step:
            total = torch.baddbmm(grad[:, step], transition[:, step].transpose(-1, -2), total)
    return torch.stack(grads[::-1], dim=1)


@_scan_backward.register_fake
def _(transition: Tensor, grad: Tensor) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def _save_scan(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _scan_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    transition, states = ctx.saved_tensors
    update = _scan_backward(transition, grad.contiguous())
    return update @ states.transpose(-1, -2), update


scan.register_autograd(_scan_gradients, setup_context=_save_scan)
