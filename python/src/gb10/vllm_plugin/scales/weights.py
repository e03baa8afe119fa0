"""Global scales of the weights of a fused layer: one for each part, and each part keeps its own.

Where block scales can take up the difference the parts get one scale, and no value changes. Elsewhere the
parts keep theirs. Our kernels read one for each row. vLLM's read one for each layer; so the difference is
multiplied onto what comes out of a linear layer, and for experts it goes through the activation, which is
linear in the up projection, into the scales of the down projection. Nothing is rounded to four bits again.
"""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.model_executor.kernels.linear import NvFp4LinearKernel
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.quantization.utils.quant_utils import QuantKey

from gb10.nvfp4.fused import share_scale
from gb10.vllm_plugin.refusal import refuse
from gb10.vllm_plugin.scales.forms import Form, is_weight_only, label, takes_row_scales

_LINEAR_IN_UP = (MoEActivation.SILU, MoEActivation.GELU, MoEActivation.GELU_TANH)


@dataclass(frozen=True)
class Carried:
    """How many parts of a layer had global scales of their own, and what became of them."""

    shared: int = 0
    """They have one scale now."""

    own: int = 0
    """They keep theirs."""


class PartScales(NvFp4LinearKernel):  # type: ignore[misc]  # vLLM is untyped for mypy
    """The kernel of a layer whose parts keep global scales of their own, around the kernel that runs it."""

    def __init__(self, inner: NvFp4LinearKernel, scales: torch.Tensor, rows: list[int]) -> None:
        """`scales`: float32 `[P]`; `rows`: how many rows of the weight each of the P parts has."""
        self.inner = inner
        self._row_scales = scales.repeat_interleave(torch.tensor(rows, device=scales.device))
        self._by_row = takes_row_scales(type(inner))

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        return False, "it is put around another kernel"

    @classmethod
    def can_implement(cls, config: Any) -> tuple[bool, str | None]:
        return False, "it is put around another kernel"

    def input_quant_key(self) -> QuantKey | None:
        return self.inner.input_quant_key()

    def process_weights_after_loading(self, layer: Any) -> None:
        """Give the inner kernel the rows' scales, or keep what its output has to be multiplied with."""
        if self._by_row:
            layer.weight_global_scale = torch.nn.Parameter(self._row_scales, requires_grad=False)
        else:
            layer.register_buffer(
                "part_ratios", self._row_scales / layer.weight_global_scale, persistent=False
            )
        self.inner.process_weights_after_loading(layer)

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if self._by_row:
            out: torch.Tensor = self.inner.apply_weights(layer, x, bias)
            return out
        out = self.inner.apply_weights(layer, x, None)
        scaled = out.float() * layer.part_ratios
        result: torch.Tensor = scaled if bias is None else scaled + bias
        return result.to(out.dtype)


def carry_linear(form: Form, method: Any, layer: Any) -> Carried:
    """Bring the parts of a linear layer to one global scale, in `layer`, or let its kernel know of several.

    It is called with what the loader left, before vLLM takes the largest scale for all.
    """
    if isinstance(method.kernel, PartScales):  # loaded again
        method.kernel = method.kernel.inner
    scales = form.scales(layer, form.weight)
    rows = list(layer.logical_widths)
    if len(rows) != scales.numel() or not _differ(scales[None]).any():
        return Carried()
    carried = scales[None].clone()
    if share_scale(layer.weight_scale.data[None], carried, rows).all():
        form.store(layer, form.weight, carried[0])
        return Carried(shared=len(rows))
    method.kernel = PartScales(method.kernel, scales, rows)
    form.store(layer, form.weight, scales.max().expand_as(scales).contiguous())
    return Carried(own=len(rows))


def carry_experts(form: Form, method: Any, layer: Any) -> Carried:
    """Do the same for gate and up of each expert, before vLLM takes the gate's scale for both.

    Raises Refused when an activation that is not linear in the up projection leaves no way.
    """
    name = f"w13_{form.weight}"
    scales = form.scales(layer, name)
    if scales.ndim != 2 or scales.shape[1] != 2:
        return Carried()
    differ = _differ(scales)
    if not differ.any():
        return Carried()
    rows = layer.w13_weight_scale.shape[1] // 2
    kept = ~share_scale(layer.w13_weight_scale.data, scales, [rows, rows])
    if not kept.any():
        form.store(layer, name, scales)
    elif takes_row_scales(method.experts_cls):
        # vLLM takes [:, 0] and compares it with [:, 1].
        form.store(layer, name, scales.repeat_interleave(rows, dim=1)[:, None].expand(-1, 2, -1))
    else:
        _through_activation(form, method, layer, scales, int(kept.nonzero()[0]))
    return Carried(shared=2 * int((differ & ~kept).sum()), own=2 * int(kept.sum()))


def _through_activation(form: Form, method: Any, layer: Any, scales: torch.Tensor, example: int) -> None:
    """Give both parts the gate's scale; what the up projection is off by then goes to the down projection.

    act(gate) * (ratio * up) = ratio * (act(gate) * up): the values of the down projection's input shrink by
    `ratio`, so does their calibrated scale, and the global scale of its weight grows.
    """
    if not _is_linear_in_up(method, layer):
        gate, up = scales[example].tolist()
        refuse(
            f"{label(layer)}: gate and up projection of an expert have the global scales {gate:g} and "
            f"{up:g}, which vLLM's {layer.activation.value} experts cannot keep apart; "
            "quantise the checkpoint with one scale for both"
        )
    ratios = scales[:, 1] / scales[:, 0]
    form.store(layer, f"w13_{form.weight}", scales[:, :1].expand(-1, 2).contiguous())
    form.store(layer, f"w2_{form.weight}", form.scales(layer, f"w2_{form.weight}") * ratios)
    if is_weight_only(method):
        return
    name = f"w2_{form.activation}"
    inputs = form.scales(layer, name)
    here = local_experts(layer, inputs.shape[0])
    inputs[here] /= ratios
    form.store(layer, name, inputs)


def _is_linear_in_up(method: Any, layer: Any) -> bool:
    config = method.moe
    plain = (getattr(layer, name, None) for name in ("swiglu_limit", "swiglu_alpha", "swiglu_beta"))
    return (
        layer.activation in _LINEAR_IN_UP
        and config.swiglu_limit is None
        and not config.has_bias
        and all(value is None for value in plain)
    )


def local_experts(layer: Any, count: int) -> torch.Tensor:
    """Where this rank's experts stand among `count` rows, in their order: all rows, or the global numbers."""
    table = getattr(layer, "_expert_map", None)
    if table is None or count == layer.local_num_experts:
        return torch.arange(count)
    numbers: torch.Tensor = (table >= 0).nonzero().flatten()
    return numbers[table[numbers].argsort()]


def _differ(scales: torch.Tensor) -> torch.Tensor:
    """Which rows of `[E, P]` hold different numbers that can be scales: all finite and positive."""
    usable = (scales.isfinite() & (scales > 0)).all(1)
    return (scales != scales[:, :1]).any(1) & usable
