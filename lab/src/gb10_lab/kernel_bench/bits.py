"""Command line: `python -m gb10_lab kernel-bits --out FILE [--against FILE]`.

Whether two builds of the library give the same bits: one process for each, the same seeded inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import torch
from typer import Option

from gb10.errors import EXIT_FAILED
from gb10.files import read_json, write_json
from gb10.kernels import bandwidth, fp8_gemv, moe_decode, moe_router, nvfp4_gemv, quantize
from gb10.nvfp4 import swizzle_128x4
from gb10_lab.kernel_bench import adapters, data, gdn
from gb10_lab.kernel_bench.shapes import DENSE, GDN, MOE, Dense, Gdn, Moe

TOKENS = (1, 2, 3, 4, 8, 16)
SMALL_DENSE = (Dense("small", "narrow", 40, 320), Dense("small", "tall", 1000, 2048))
SMALL_MOE = (Moe("small", "moe", 16, 4, 256, 128), Moe("small", "moe", 16, 4, 320, 192, shared=64))
ACTIVATIONS = (
    *("silu", "gelu", "gelu_tanh", "swigluoai", "swigluoai_uninterleave", "swiglustep", "situ"),
    *("silu_no_mul", "gelu_no_mul", "gelu_tanh_no_mul", "relu2_no_mul"),
)
DTYPES = (torch.bfloat16, torch.float16)

Call = Callable[[], tuple[torch.Tensor, ...]]


def run(
    out: Annotated[Path, Option(metavar="FILE", help="the digests, as JSON")],
    against: Annotated[Path | None, Option(metavar="FILE", help="the digests of another build")] = None,
) -> int:
    """Write the SHA-256 of what every operator gives, or hold them against another build's.

    The exit status is 1 when bits differ.
    """
    other = read_json(against) if against else None
    device, held = adapters.ready()
    found = digests(held, device)
    write_json(out, found, indent=None)
    print(f"{len(found)} calls of {len({name.split(',')[0] for name in found})} operators")
    if other is None:
        return 0
    different = differences(found, other)
    print("\n".join(different) or "all bits are the same")
    return EXIT_FAILED if different else 0


def differences(found: dict[str, str], other: dict[str, str]) -> list[str]:
    """One line for every call that gave other bits, or that only one build has."""
    lines = []
    for name in dict.fromkeys((*other, *found)):
        if name not in found or name not in other:
            lines.append(f"{name}: only {'here' if name in found else 'in the other build'}")
        elif found[name] != other[name]:
            lines.append(f"{name}: other bits")
    return lines


def digests(held: list[str], device: torch.device) -> dict[str, str]:
    """The SHA-256 of every call's outputs. Each call has a seed of its own: one left out moves no other."""
    found = {}
    for name, make in calls(held, device):
        torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]))
        call = make()
        torch.cuda.synchronize()
        digest = hashlib.sha256()
        for out in call():
            digest.update(out.contiguous().view(torch.uint8).cpu().numpy().tobytes())
        found[name] = digest.hexdigest()
    return found


def calls(held: list[str], device: torch.device) -> Iterator[tuple[str, Callable[[], Call]]]:
    """Names, and what draws the inputs of a call."""
    yield "bandwidth_read", lambda: _bandwidth(device)
    for shape in (*SMALL_DENSE, *DENSE[1:7]):
        for tokens in TOKENS:
            for dtype in DTYPES:
                what = f"{shape.label}, {tokens} tokens, {dtype}"
                for swizzled in (False, True):
                    yield f"nvfp4_gemv, {what}, {swizzled=}", _nvfp4(shape, tokens, dtype, swizzled, device)
                for block in (False, True):
                    yield f"fp8_gemv, {what}, {block=}", _fp8(shape, tokens, dtype, block, device)
                if "sparse24_gemv" in held and dtype == torch.bfloat16 and shape in SMALL_DENSE:
                    yield f"sparse24_gemv, {what}", _sparse24(shape, tokens, device)
    for layer in (*SMALL_MOE, *MOE[:2]):
        for tokens in TOKENS:
            for activation in ACTIVATIONS if layer in SMALL_MOE else ACTIVATIONS[:1]:
                for swizzled in (False, True):
                    what = f"{layer.label}, {tokens} tokens, {activation}, {swizzled=}"
                    yield f"moe_decode, {what}", _moe(layer, tokens, activation, swizzled, device)
            if "route_experts" in held:
                for dtype in DTYPES:
                    yield (
                        f"route_experts, {layer.label}, {tokens} tokens, {dtype}",
                        _router(layer, tokens, dtype, device),
                    )
    for heads in GDN[:3]:
        for tokens in TOKENS:
            what = f"{heads.model} {heads.label}, {tokens} tokens"
            yield f"gdn_decode, {what}", _gdn(heads, tokens, device)
    for dtype in (*DTYPES, torch.float32):
        for swizzled in (False, True):
            what = f"{dtype}, {swizzled=}"
            yield f"quantize_nvfp4, {what}", _quantize(False, dtype, swizzled, device)
            yield f"silu_mul_quantize_nvfp4, {what}", _quantize(True, dtype, swizzled, device)


def _bandwidth(device: torch.device) -> Call:
    x = torch.randint(0, 256, (1 << 24,), dtype=torch.uint8, device=device)
    return lambda: (bandwidth.read(x),)


def _nvfp4(
    shape: Dense, tokens: int, dtype: torch.dtype, swizzled: bool, device: torch.device
) -> Callable[[], Call]:
    def make() -> Call:
        x = data.activations(tokens, shape.columns, device).to(dtype)
        weight = _laid_out(data.nvfp4(shape.rows, shape.columns, device), swizzled)
        bias = torch.randn(shape.rows, device=device).to(dtype) if swizzled else None
        return lambda: (nvfp4_gemv.nvfp4_gemv(x, *weight, bias, swizzled=swizzled),)

    return make


def _fp8(
    shape: Dense, tokens: int, dtype: torch.dtype, block: bool, device: torch.device
) -> Callable[[], Call]:
    def make() -> Call:
        x = data.activations(tokens, shape.columns, device).to(dtype)
        weight, scales = data.fp8(shape, device)
        if block:
            scales = torch.rand((-(-shape.rows // 128), -(-shape.columns // 128)), device=device) / 16
        bias = torch.randn(shape.rows, device=device).to(dtype) if block else None
        return lambda: (fp8_gemv.fp8_gemv(x, weight, scales, bias),)

    return make


def _sparse24(shape: Dense, tokens: int, device: torch.device) -> Callable[[], Call]:
    def make() -> Call:
        version = adapters.sparse24_gemv(
            data.activations(tokens, shape.columns, device), shape.rows, [data.sparse24(shape, device)[0]]
        )
        return lambda: (version.run(0),)

    return make


def _moe(
    layer: Moe, tokens: int, activation: str, swizzled: bool, device: torch.device
) -> Callable[[], Call]:
    """With ``swizzled`` also float16, int64 ids looked up in a map, up rows first, a shared multiplier."""

    def make() -> Call:
        dtype = torch.float16 if swizzled else torch.bfloat16
        x = data.activations(tokens, layer.hidden, device).to(dtype)
        weights, routed = data.moe(layer, device), data.routing(layer, tokens, False, device)
        w13, w2, shared_w13 = weights.w13, _laid_out(weights.w2, swizzled), weights.shared_w13
        if activation.endswith("_no_mul"):
            w13 = _half(w13)
            shared_w13 = shared_w13 and _half(shared_w13)
        w13, shared = _laid_out(w13, swizzled), None
        if shared_w13 is not None and weights.shared_w2 is not None:
            parts = (*_laid_out(shared_w13, swizzled), *_laid_out(weights.shared_w2, swizzled))
            shared = moe_decode.SharedExpert(*parts, torch.rand(tokens, device=device) if swizzled else None)
        ids = routed.ids.long() if swizzled else routed.ids
        order = torch.randperm(layer.experts, dtype=torch.int32, device=device)

        def call() -> tuple[torch.Tensor, ...]:
            out = moe_decode.moe_decode(
                x,
                *w13,
                *w2,
                ids,
                routed.weights,
                expert_map=order if swizzled else None,
                shared=shared,
                activation=activation,
                limit=5.0 if activation == "swigluoai_uninterleave" else None,
                alpha=2.0 if activation == "situ" else None,
                up_first=swizzled and activation != "swigluoai",
                swizzled=swizzled,
                router_weight_on_input=tokens == 3,
            )
            return (out,)

        return call

    return make


def _gdn(heads: Gdn, tokens: int, device: torch.device) -> Callable[[], Call]:
    """The output and the states that it leaves."""

    def make() -> Call:
        dtype = torch.float32 if heads.state_bytes == 4 else torch.bfloat16
        states = gdn.layer(heads, tokens, device, dtype)
        version = adapters.gdn_decode(heads, data.activations(tokens, heads.columns, device), [states])
        return lambda: (version.run(0), states.state, states.conv_state)

    return make


def _router(layer: Moe, tokens: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Call]:
    """In bfloat16 also a norm with residual, and a shared gate."""

    def make() -> Call:
        hidden = -(-layer.hidden // 256) * 256
        x, residual, weight = (
            data.activations(rows, hidden, device).to(dtype) for rows in (tokens, tokens, 1)
        )
        router = data.routers(1, layer.experts, hidden, device)[0].to(dtype)
        full = dtype == torch.bfloat16

        def call() -> tuple[torch.Tensor, ...]:
            routed = moe_router.route_experts(
                x,
                router[:-1],
                layer.topk,
                renormalise=full,
                norm=moe_router.Norm(weight[0], 1e-6, True, residual) if full else None,
                shared_gate_weight=router[-1] if full else None,
            )
            return tuple(each for each in routed if each is not None)

        return call

    return make


def _quantize(
    fused_silu: bool, dtype: torch.dtype, swizzled: bool, device: torch.device
) -> Callable[[], Call]:
    def make() -> Call:
        x = data.activations(130, 2 * 192 if fused_silu else 192, device).to(dtype)
        scale = torch.full((1,), adapters.QUANTIZE_SCALE, device=device)
        call = quantize.silu_mul_quantize_nvfp4 if fused_silu else quantize.quantize_nvfp4
        return lambda: tuple(call(x, scale, swizzled=swizzled))

    return make


def _laid_out(weight: data.Nvfp4, swizzled: bool) -> data.Nvfp4:
    return weight._replace(scales=swizzle_128x4(weight.scales)) if swizzled else weight


def _half(weight: data.Nvfp4) -> data.Nvfp4:
    """The first half of the rows."""
    rows = weight.packed.shape[-2] // 2
    return data.Nvfp4(
        weight.packed[..., :rows, :].contiguous(),
        weight.scales[..., :rows, :].contiguous(),
        weight.global_scale,
    )
