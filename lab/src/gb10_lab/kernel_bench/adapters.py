"""Calls of our operators on the benchmark's data: the one place that knows their arguments."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import replace

import torch

from gb10.errors import UserError
from gb10.kernels import moe_decode as moe_kernels
from gb10.kernels import moe_grouped as grouped_kernels
from gb10_lab.kernel_bench import gdn
from gb10_lab.kernel_bench.data import Fp8, MoeWeights, Nvfp4, Routing, Sparse24
from gb10_lab.kernel_bench.shapes import Gdn
from gb10_lab.kernel_bench.timing import Version

OPERATORS = (
    "nvfp4_gemv",
    "fp8_gemv",
    "moe_decode",
    "gdn_decode",
    "route_experts",
    "sparse24_gemv",
    "quantize_nvfp4",
    "silu_mul_quantize_nvfp4",
)

EPSILON = 1e-6
"""Of the router's norm."""
QUANTIZE_SCALE = 4.0 / (6 * 448)
"""Global scale for normal activations: amax 4."""


def ready() -> tuple[torch.device, list[str]]:
    """Load our libraries, and give the GPU and the names of the measured operators that they hold.

    Raises ``gb10.errors.UserError`` without a GPU or a library. That of ``sparse24`` may be missing.
    """
    if not torch.cuda.is_available():
        raise UserError("there is no CUDA GPU here; run this on a machine that has one")
    library = importlib.import_module("gb10.kernels.library")
    library.load()
    with contextlib.suppress(UserError):
        library.load(library.SPARSE24)
    return torch.device("cuda", torch.cuda.current_device()), held()


def held() -> list[str]:
    """The measured operators that are loaded."""
    return [name for name in OPERATORS if hasattr(torch.ops.gb10, name)]


def nvfp4_gemv(x: torch.Tensor, copies: list[Nvfp4]) -> Version:
    """The product of ``x`` with an NVFP4 weight, linear scales."""
    call = torch.ops.gb10.nvfp4_gemv.default

    def run(i: int, out: torch.Tensor) -> None:
        weight = copies[i]
        call(x, weight.packed, weight.scales, weight.global_scale, None, False, out)

    return _into(x, copies[0].packed.shape[0], run, len(copies))


def fp8_gemv(x: torch.Tensor, copies: list[Fp8]) -> Version:
    """The product of ``x`` with an FP8 weight, one scale a row."""
    call = torch.ops.gb10.fp8_gemv.default

    def run(i: int, out: torch.Tensor) -> None:
        call(x, copies[i].weight, copies[i].scales, None, out)

    return _into(x, copies[0].weight.shape[0], run, len(copies))


def sparse24_gemv(x: torch.Tensor, rows: int, copies: list[Sparse24]) -> Version:
    """The product of ``x`` with a weight of ``rows`` rows of which 2 of 4 are kept."""
    call = torch.ops.gb10.sparse24_gemv.default

    def run(i: int, out: torch.Tensor) -> None:
        call(x, *copies[i], None, out)

    return _into(x, rows, run, len(copies))


def moe_decode(
    x: torch.Tensor, copies: list[MoeWeights], routed: list[Routing], multiplier: torch.Tensor | None = None
) -> Version:
    """The layer after routing; call ``i`` takes copy ``i`` and ``routed[i]``.

    ``multiplier`` is float32 ``[tokens]``, of the shared expert's output; None is 1.
    """
    tokens, topk = routed[0].ids.shape
    size = moe_kernels.workspace_bytes(tokens, topk, *_widths(copies[0]))
    return _moe(torch.ops.gb10.moe_decode.default, size, x, copies, routed, multiplier)


def moe_grouped(
    x: torch.Tensor, copies: list[MoeWeights], routed: list[Routing], multiplier: torch.Tensor | None = None
) -> Version:
    """The same by the kernel for many tokens."""
    tokens, topk = routed[0].ids.shape
    experts = copies[0].w2.packed.shape[0]
    size = grouped_kernels.workspace_bytes(tokens, topk, experts, x.shape[1], *_widths(copies[0]))
    return _moe(torch.ops.gb10.moe_grouped.default, size, x, copies, routed, multiplier)


def _widths(weights: MoeWeights) -> tuple[int, int]:
    """The intermediate sizes of the routed experts and of the shared one (0 without)."""
    shared = 0 if weights.shared_w2 is None else 2 * weights.shared_w2.packed.shape[1]
    return 2 * weights.w2.packed.shape[2], shared


def _moe(
    call: Callable[..., None],
    size: int,
    x: torch.Tensor,
    copies: list[MoeWeights],
    routed: list[Routing],
    multiplier: torch.Tensor | None,
) -> Version:
    workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
    silu = ("silu", float("inf"), 1.0, 0.0, False, False, False)

    def run(i: int, out: torch.Tensor) -> None:
        weights = copies[i]
        shared = (*(weights.shared_w13 or (None,) * 3), *(weights.shared_w2 or (None,) * 3), multiplier)
        call(x, *weights.w13, *weights.w2, *routed[i], None, *shared, *silu, workspace, out)

    return _into(x, x.shape[1], run, len(copies))


def gdn_decode(shape: Gdn, mixed: torch.Tensor, copies: list[gdn.Layer]) -> Version:
    """One token of each sequence; a run changes the states of its copy."""
    call = torch.ops.gb10.gdn_decode.default
    slots = gdn.slots_of(mixed.shape[0], mixed.device)
    heads = (shape.key_heads, shape.value_heads, shape.interleaved)

    def run(i: int, out: torch.Tensor) -> None:
        w = copies[i]
        states = (w.conv_state, w.conv_weight, None, w.A_log, w.dt_bias, w.state)
        call(mixed, *states, w.norm_weight, gdn.EPSILON, slots, *heads, out, None)

    version = _into(mixed, shape.values, run, len(copies))
    return replace(version, restore=gdn.restoring(copies))


def route_experts(
    x: torch.Tensor,
    residual: torch.Tensor,
    routers: torch.Tensor,
    routed: list[Routing],
    normed: torch.Tensor,
    total: torch.Tensor,
    multiplier: torch.Tensor,
) -> Version:
    """Residual, norm (weight 1) and router; call ``i`` takes ``routers[i]`` and writes ``routed[i]``.

    ``routers``: as x ``[copies, experts + 1, hidden]``, the last row the shared expert's. Every call writes
    ``normed`` and ``total``, as x, and ``multiplier``, float32 ``[tokens]``. The output is the weights.
    """
    call = torch.ops.gb10.route_experts.default
    tokens, experts = x.shape[0], routers.shape[1] - 1
    workspace = torch.zeros(4 * tokens * (experts + 3), dtype=torch.uint8, device=x.device)
    ones = torch.ones_like(x[0])

    def run(i: int) -> torch.Tensor:
        gate, shared = routers[i, :-1], routers[i, -1]
        outputs = (*routed[i], multiplier, normed, total)
        call(x, residual, ones, EPSILON, False, gate, shared, True, workspace, *outputs)
        return routed[i].weights

    return Version("ours", run, len(routers))


def quantize(x: list[torch.Tensor], fused_silu: bool) -> Version:
    """Quantise the rows of each ``x`` in turn, swizzled scales; the output is the packed codes."""
    name = "silu_mul_quantize_nvfp4" if fused_silu else "quantize_nvfp4"
    call = getattr(torch.ops.gb10, name).default
    rows, columns = x[0].shape[0], x[0].shape[1] // (2 if fused_silu else 1)
    device = x[0].device
    scale = torch.full((1,), QUANTIZE_SCALE, dtype=torch.float32, device=device)
    scale_shape = (-(-rows // 128) * 128, -(-(columns // 16) // 4) * 4)
    outs = [
        (
            torch.empty((rows, columns // 2), dtype=torch.uint8, device=device),
            torch.empty(scale_shape, dtype=torch.float8_e4m3fn, device=device),
        )
        for _ in x
    ]

    def run(i: int) -> torch.Tensor:
        call(x[i], scale, True, *outs[i])
        return outs[i][0]

    return Version("ours", run, len(x))


def nvfp4_search(weight: torch.Tensor) -> Version:
    """Convert ``weight`` with searched block scales; the output is the packed codes."""
    call = torch.ops.gb10.nvfp4_search.default
    rows, columns = weight.shape
    scale = torch.full((1,), QUANTIZE_SCALE, dtype=torch.float32, device=weight.device)
    codes = torch.empty((rows, columns // 2), dtype=torch.uint8, device=weight.device)
    scales = torch.empty((rows, columns // 16), dtype=torch.float8_e4m3fn, device=weight.device)
    squares = torch.empty((rows, 2), dtype=torch.float64, device=weight.device)

    def run(i: int) -> torch.Tensor:
        call(weight, scale, codes, scales, squares)
        return codes

    return Version("ours", run, 1)


def _into(x: torch.Tensor, rows: int, call: Callable[[int, torch.Tensor], None], copies: int) -> Version:
    """A version that writes into an output of its own, ``[tokens, rows]``, which begins as NaN."""
    out = torch.full((x.shape[0], rows), float("nan"), dtype=x.dtype, device=x.device)

    def run(i: int) -> torch.Tensor:
        call(i, out)
        return out

    return Version("ours", run, copies)
