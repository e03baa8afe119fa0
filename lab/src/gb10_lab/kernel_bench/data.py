"""Random weights and activations, copies of them, and float64 references."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from gb10_lab.kernel_bench.shapes import BLOCK_SIZE, Dense, Moe

if TYPE_CHECKING:
    from gb10.sparse24 import Sparse24Weight

_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_CODE_RMS = math.sqrt(sum(v * v for v in _VALUES) / len(_VALUES))
_SCALE_CODES = (0x30, 0x41)
"""E4M3 bytes of the block scales that are drawn: 0.5 to 2, rms about 1.2."""
_REFERENCE_ROWS = 16384


class Nvfp4(NamedTuple):
    """One matrix or a stack: uint8 ``[..., N, K/2]``, E4M3 ``[..., N, K/16]``, float32 ``[...]``."""

    packed: torch.Tensor
    scales: torch.Tensor
    global_scale: torch.Tensor


class Fp8(NamedTuple):
    """E4M3 ``[N, K]`` with a float32 scale for each row ``[N]``."""

    weight: torch.Tensor
    scales: torch.Tensor


class Sparse24(NamedTuple):
    """The tensors of ``gb10.sparse24.Sparse24Weight``."""

    values: torch.Tensor
    positions: torch.Tensor
    scales: torch.Tensor
    global_scale: torch.Tensor


class MoeWeights(NamedTuple):
    """Gate and up ``[E, 2I, H]`` (gate first), down ``[E, H, I]``, and those of a shared expert or None."""

    w13: Nvfp4
    w2: Nvfp4
    shared_w13: Nvfp4 | None
    shared_w2: Nvfp4 | None


class Routing(NamedTuple):
    """int32 ids and float32 weights, both ``[tokens, topk]``."""

    ids: torch.Tensor
    weights: torch.Tensor


def nvfp4(rows: int, columns: int, device: torch.device, stack: tuple[int, ...] = ()) -> Nvfp4:
    """Draw all sixteen codes alike. The global scale makes a product with normal inputs about 1."""
    packed = torch.randint(0, 256, (*stack, rows, columns // 2), dtype=torch.uint8, device=device)
    scales = torch.randint(
        *_SCALE_CODES, (*stack, rows, columns // BLOCK_SIZE), dtype=torch.uint8, device=device
    )
    factor = 1 / (_CODE_RMS * 1.2 * math.sqrt(columns))
    global_scale = torch.full(stack or (1,), factor, dtype=torch.float32, device=device)
    return Nvfp4(packed, scales.view(torch.float8_e4m3fn), global_scale)


def fp8(shape: Dense, device: torch.device) -> Fp8:
    """Draw normal numbers, rounded to E4M3, and row scales that differ."""
    weight = torch.empty((shape.rows, shape.columns), dtype=torch.float8_e4m3fn, device=device)
    for first in range(0, shape.rows, _REFERENCE_ROWS):
        part = weight[first : first + _REFERENCE_ROWS]
        part.copy_(torch.randn(part.shape, device=device) * 16)
    scales = (torch.rand(shape.rows, device=device) + 0.5) / (16 * math.sqrt(shape.columns))
    return Fp8(weight, scales)


def sparse24(shape: Dense, device: torch.device) -> tuple[Sparse24, Nvfp4]:
    """A packed weight, and its numbers as dense NVFP4. Beyond 16384 rows they repeat: packing takes long."""
    from gb10 import sparse24 as format24
    from gb10.nvfp4 import NvFp4Tensor

    rows = min(shape.rows, _REFERENCE_ROWS)
    drawn = nvfp4(rows, shape.columns, device)
    packed: Sparse24Weight = format24.pack(NvFp4Tensor(*drawn), allow_loss=True)[0]
    kept = format24.unpack(packed)
    tiles = -(-shape.rows // 16)
    values, positions, scales = (
        _repeated(part, tiles) for part in (packed.values, packed.positions, packed.scales)
    )
    dense = Nvfp4(
        _repeated(kept.packed, shape.rows), _repeated(kept.block_scales, shape.rows), drawn.global_scale
    )
    return Sparse24(values, positions, scales, drawn.global_scale), dense


def activations(tokens: int, columns: int, device: torch.device) -> torch.Tensor:
    """Draw normal BF16 numbers ``[tokens, columns]``."""
    return torch.randn((tokens, columns), device=device).to(torch.bfloat16)


def moe(shape: Moe, device: torch.device) -> MoeWeights:
    """Draw all experts of a layer."""
    stack = (shape.experts,)
    return MoeWeights(
        nvfp4(2 * shape.intermediate, shape.hidden, device, stack),
        nvfp4(shape.hidden, shape.intermediate, device, stack),
        nvfp4(2 * shape.shared, shape.hidden, device) if shape.shared else None,
        nvfp4(shape.hidden, shape.shared, device) if shape.shared else None,
    )


def clone(weights: MoeWeights) -> MoeWeights:
    """The same layer once more in memory."""
    return MoeWeights(
        _again(weights.w13),
        _again(weights.w2),
        _again_or_none(weights.shared_w13),
        _again_or_none(weights.shared_w2),
    )


def routing(shape: Moe, tokens: int, correlated: bool, device: torch.device) -> Routing:
    """Draw ``topk`` distinct experts a token, uniformly; correlated tokens draw from 4 x ``topk`` experts."""
    if correlated:
        pool = torch.randperm(shape.experts, device=device)[: min(4 * shape.topk, shape.experts)]
    else:
        pool = torch.arange(shape.experts, device=device)
    order = torch.rand((tokens, len(pool)), device=device).argsort(dim=1)[:, : shape.topk]
    weights = torch.rand((tokens, shape.topk), device=device) + 0.1
    return Routing(pool[order].to(torch.int32), weights / weights.sum(dim=1, keepdim=True))


def routers(copies: int, experts: int, hidden: int, device: torch.device) -> torch.Tensor:
    """Draw routers whose logits are about 1, BF16 ``[copies, experts + 1, hidden]``."""
    drawn = torch.randn((copies, experts + 1, hidden), device=device)
    return drawn.div_(hidden**0.5).to(torch.bfloat16)


def normed(x: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The RMS norm with weight 1 in float64."""
    wide = x.to(torch.float64)
    scaled: torch.Tensor = wide / (wide.square().mean(dim=1, keepdim=True) + epsilon).sqrt()
    return scaled


def router_logits(x: torch.Tensor, router: torch.Tensor) -> torch.Tensor:
    """``x @ router.T`` in float64, from normed BF16 ``x``."""
    return x.to(torch.float64) @ router.to(torch.float64).T


def router_weights(
    x: torch.Tensor, residual: torch.Tensor, router: torch.Tensor, topk: int, epsilon: float
) -> torch.Tensor:
    """Weights of the chosen experts in float64, largest first; normed tokens and logits rounded to BF16."""
    rounded = normed(x.to(torch.float64) + residual.to(torch.float64), epsilon).to(torch.bfloat16)
    logits = router_logits(rounded, router)[:, :-1].to(torch.bfloat16).to(torch.float64)
    return logits.topk(topk).values.softmax(dim=1)


def moved(tensors: object) -> int:
    """Bytes of all tensors in a nest of tuples; None counts nothing."""
    if isinstance(tensors, torch.Tensor):
        return tensors.numel() * tensors.element_size()
    if isinstance(tensors, tuple):
        return sum(moved(each) for each in tensors)
    return 0


def decode(weight: Nvfp4, first: int = 0, end: int | None = None) -> torch.Tensor:
    """Rows ``first`` to ``end`` of one matrix, exactly, as float64 ``[rows, K]``."""
    table = torch.tensor([*_VALUES, *(-v for v in _VALUES)], dtype=torch.float64, device=weight.packed.device)
    packed, scales = weight.packed[first:end], weight.scales[first:end]
    codes = torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)
    values = table[codes.to(torch.int32)]
    blocks = values.view(*scales.shape, BLOCK_SIZE) * scales.to(torch.float64).unsqueeze(-1)
    return blocks.flatten(-2) * weight.global_scale.to(torch.float64)


def product(x: torch.Tensor, weight: Nvfp4 | Fp8) -> torch.Tensor:
    """``x @ weight.T`` in float64."""
    wide = x.to(torch.float64)
    rows = weight[0].shape[0]
    parts = []
    for first in range(0, rows, _REFERENCE_ROWS):
        end = min(first + _REFERENCE_ROWS, rows)
        if isinstance(weight, Nvfp4):
            part = decode(weight, first, end)
        else:
            part = weight.weight[first:end].to(torch.float64) * weight.scales[first:end, None].to(
                torch.float64
            )
        parts.append(wide @ part.T)
    return torch.cat(parts, dim=1)


def moe_reference(
    x: torch.Tensor, weights: MoeWeights, routed: Routing, multiplier: torch.Tensor | None = None
) -> torch.Tensor:
    """The layer after routing in float64: SiLU(gate) * up, down, weighted sum, plus the shared expert.

    ``multiplier`` is float32 ``[tokens]``, of the shared expert's output; None is 1.
    """
    wide = x.to(torch.float64)
    out = torch.zeros_like(wide)
    for expert in sorted(set(routed.ids.flatten().tolist())):
        token, slot = (routed.ids == expert).nonzero(as_tuple=True)
        one = (_one(weights.w13, expert), _one(weights.w2, expert))
        out.index_add_(
            0, token, _mlp(wide[token], *one) * routed.weights[token, slot, None].to(torch.float64)
        )
    if weights.shared_w13 is not None and weights.shared_w2 is not None:
        shared = _mlp(wide, weights.shared_w13, weights.shared_w2)
        out += shared if multiplier is None else shared * multiplier[:, None].to(torch.float64)
    return out


def limit_for(reference: torch.Tensor, limit: float) -> float:
    """``limit``, or where few outputs make that larger, a little more than the error of rounding to BF16.

    Rounding alone has a relative L2 error of about 1.7e-3, up to 3.9e-3 for a single number.
    """
    return max(limit, 1.05 * relative_error(reference.to(torch.bfloat16), reference))


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """``|out - reference| / |reference|``, Euclidean; NaN anywhere gives NaN."""
    wide = out.to(torch.float64)
    return float((wide - reference).norm() / reference.norm())


def quantized(x: torch.Tensor, fused_silu: bool, global_scale: float) -> torch.Tensor:
    """The packed codes that ``gb10.nvfp4.quantize`` gives for ``x``, or for SiLU(gate) * up of its halves."""
    from gb10 import nvfp4 as reference

    if fused_silu:
        gate, up = x.to(torch.float32).chunk(2, dim=1)
        x = (torch.nn.functional.silu(gate) * up).to(x.dtype)
    return torch.cat(
        [reference.quantize(part, global_scale).packed for part in torch.split(x, _REFERENCE_ROWS)]
    )


def differing(out: torch.Tensor, wanted: torch.Tensor) -> float:
    """The share of bytes that are not the same."""
    return float((out != wanted).float().mean())


def _repeated(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """The first dimension repeated and cut to ``length``."""
    raw = tensor.view(torch.uint8)
    times = -(-length // raw.shape[0])
    return raw.repeat(times, *[1] * (raw.ndim - 1))[:length].contiguous().view(tensor.dtype)


def _again(weight: Nvfp4) -> Nvfp4:
    return Nvfp4(*(each.clone() for each in weight))


def _again_or_none(weight: Nvfp4 | None) -> Nvfp4 | None:
    return None if weight is None else _again(weight)


def _one(stack: Nvfp4, index: int) -> Nvfp4:
    return Nvfp4(stack.packed[index], stack.scales[index], stack.global_scale[index])


def _mlp(x: torch.Tensor, w13: Nvfp4, w2: Nvfp4) -> torch.Tensor:
    gate, up = (x @ decode(w13).T).chunk(2, dim=1)
    return (torch.nn.functional.silu(gate) * up) @ decode(w2).T
