"""The best stock paths: Marlin of vLLM (NVFP4), and torch's own matrix products (BF16, FP8).

vLLM's Python functions prepare the weights and make the calls, unmodified. The workspace of Marlin's locks is
made once, as vLLM's engine does; without that every call would also clear a new one.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import torch

from gb10_lab.kernel_bench.data import Fp8, MoeWeights, Nvfp4, Routing, decode
from gb10_lab.kernel_bench.shapes import Dense, Moe
from gb10_lab.kernel_bench.timing import Version

ROWS_AT_ONCE = 16384


def unavailable() -> str:
    """Why vLLM's kernels cannot be used here, in one line; empty when they can."""
    # vLLM's attention package insists on its own kernels at import. Nothing here calls them.
    sys.modules.setdefault("vllm.vllm_flash_attn._vllm_fa2_C", types.ModuleType("_vllm_fa2_C"))
    try:
        import vllm.model_executor.layers.fused_moe.experts.marlin_moe
        import vllm.model_executor.layers.quantization.utils.marlin_utils_fp4  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return "" if hasattr(torch.ops._C, "marlin_gemm") else "vLLM is here without its CUDA kernels"


def vllm_version() -> str:
    """The version of the installed vLLM."""
    from importlib.metadata import version

    return version("vllm")


class Marlin:
    """One NVFP4 matrix, repacked for Marlin, and copies of it."""

    def __init__(self, shape: Dense, weight: Nvfp4, copies: int) -> None:
        from vllm.model_executor.layers.quantization.utils import marlin_utils, marlin_utils_fp4

        layer = torch.nn.Module()
        layer.weight = _parameter(weight.packed)
        layer.weight_scale = _parameter(weight.scales)
        layer.weight_global_scale = _parameter(weight.global_scale.reshape(()))
        layer.output_size_per_partition = shape.rows  # type: ignore[assignment]
        layer.input_size_per_partition = shape.columns  # type: ignore[assignment]
        layer.params_dtype = torch.bfloat16  # type: ignore[assignment]
        marlin_utils_fp4.prepare_fp4_layer_for_marlin(layer)
        one = (layer.weight.data, layer.weight_scale.data, layer.weight_global_scale.data)
        self._copies = [one, *(tuple(each.clone() for each in one) for _ in range(copies - 1))]
        self._shape = shape
        self._workspace = marlin_utils.get_marlin_workspace(weight.packed.device)
        self._apply = marlin_utils_fp4.apply_fp4_marlin_linear

    def __call__(self, x: torch.Tensor, i: int) -> torch.Tensor:
        weight, scale, global_scale = self._copies[i]
        out: torch.Tensor = self._apply(
            input=x,
            weight=weight,
            weight_scale=scale,
            weight_global_scale=global_scale,
            workspace=self._workspace,
            size_n=self._shape.rows,
            size_k=self._shape.columns,
        )
        return out

    def version(self, x: torch.Tensor) -> Version:
        """The product with ``x``."""
        return Version("marlin", lambda i: self(x, i), len(self._copies))


class MarlinMoe:
    """A layer's experts, repacked for Marlin, and copies of them; the shared expert likewise."""

    def __init__(self, shape: Moe, weights: MoeWeights, copies: int) -> None:
        from vllm import _custom_ops as ops
        from vllm.model_executor.layers.fused_moe.experts.marlin_moe import fused_marlin_moe
        from vllm.model_executor.layers.quantization.utils import marlin_utils, marlin_utils_fp4
        from vllm.scalar_type import scalar_types

        layer: Any = types.SimpleNamespace(
            num_experts=shape.experts,
            hidden_size=shape.hidden,
            intermediate_size_per_partition=shape.intermediate,
            params_dtype=torch.bfloat16,
        )
        one = marlin_utils_fp4.prepare_nvfp4_moe_layer_for_marlin(
            layer, *weights.w13, *weights.w2, is_act_and_mul=True
        )
        self._copies = [one, *(tuple(each.clone() for each in one) for _ in range(copies - 1))]
        self._workspace = marlin_utils.get_marlin_workspace(weights.w13.packed.device)
        self._apply = fused_marlin_moe
        self._type = scalar_types.float4_e2m1f.id
        self._sum = lambda parts, out, _ids, _map: ops.moe_sum(parts, out)
        self._silu_and_mul = torch.ops._C.silu_and_mul
        self._shape = shape
        self._shared = None
        if weights.shared_w13 is not None and weights.shared_w2 is not None:
            self._shared = (
                Marlin(Dense("", "", 2 * shape.shared, shape.hidden), weights.shared_w13, copies),
                Marlin(Dense("", "", shape.hidden, shape.shared), weights.shared_w2, copies),
            )

    def version(self, x: torch.Tensor, routed: list[Routing]) -> Version:
        """The layer after routing, as vLLM runs it; call ``i`` takes copy ``i`` and ``routed[i]``."""
        tokens, topk = routed[0].ids.shape
        shape = self._shape
        widest = tokens * topk * max(2 * shape.intermediate + 128, shape.hidden)
        cache13 = torch.empty(widest, dtype=x.dtype, device=x.device)
        out = torch.empty_like(x)
        act = torch.empty((tokens, shape.shared), dtype=x.dtype, device=x.device)

        def run(i: int) -> torch.Tensor:
            w13, w13_scale, w13_global, w2, w2_scale, w2_global = self._copies[i]
            self._apply(
                hidden_states=x,
                w1=w13,
                w2=w2,
                bias1=None,
                bias2=None,
                w1_scale=w13_scale,
                w2_scale=w2_scale,
                topk_weights=routed[i].weights,
                topk_ids=routed[i].ids,
                quant_type_id=self._type,
                global_scale1=w13_global,
                global_scale2=w2_global,
                workspace=self._workspace,
                intermediate_cache13=cache13,
                moe_sum=self._sum,
                output=out,
            )
            if self._shared:
                self._silu_and_mul(act, self._shared[0](x, i))
                out.add_(self._shared[1](act, i))
            return out

        return Version("marlin", run, len(self._copies))


def bf16(x: torch.Tensor, weights: list[torch.Tensor]) -> Version:
    """torch's BF16 product with copies of a BF16 weight ``[N, K]``."""
    out = torch.empty((x.shape[0], weights[0].shape[0]), dtype=x.dtype, device=x.device)
    return Version("bf16", lambda i: torch.mm(x, weights[i].T, out=out), len(weights))


def bf16_weight(weight: Nvfp4 | Fp8) -> torch.Tensor:
    """The same numbers in BF16 ``[N, K]``."""
    rows = weight[0].shape[0]
    parts = []
    for first in range(0, rows, ROWS_AT_ONCE):
        end = min(first + ROWS_AT_ONCE, rows)
        if isinstance(weight, Nvfp4):
            part = decode(weight, first, end)
        else:
            part = weight.weight[first:end].to(torch.float32) * weight.scales[first:end, None]
        parts.append(part.to(torch.bfloat16))
    return torch.cat(parts)


def fp8(x: torch.Tensor, copies: list[Fp8]) -> Version:
    """torch's FP8 product (W8A8, a scale a row): ``x`` is quantised before, and padded to 16 tokens.

    The time for quantising ``x`` is not counted.
    """
    wide = x.to(torch.float32)
    scale_x = (wide.abs().amax(dim=1, keepdim=True) / 448).clamp(min=1e-12)
    padded = torch.zeros((max(16, x.shape[0]), x.shape[1]), dtype=torch.float8_e4m3fn, device=x.device)
    padded[: x.shape[0]] = (wide / scale_x).to(torch.float8_e4m3fn)
    scales = torch.ones((padded.shape[0], 1), dtype=torch.float32, device=x.device)
    scales[: x.shape[0]] = scale_x

    def run(i: int) -> torch.Tensor:
        weight, weight_scales = copies[i]
        product = torch._scaled_mm(
            padded, weight.T, scale_a=scales, scale_b=weight_scales[None, :], out_dtype=torch.bfloat16
        )
        return product[: x.shape[0]]

    return Version("fp8", run, len(copies))


def _parameter(tensor: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor, requires_grad=False)
