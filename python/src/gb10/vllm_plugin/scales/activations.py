"""Input scales that a checkpoint lacks, or has several of.

Calibration does not reach every expert, and ModelOpt writes no input scale for those that it missed. vLLM
leaves their memory as it found it. The missing ones become the largest input scale of the layer's other
experts: all experts of a layer are fed the same hidden states, and a scale that is too large costs bits of
small numbers while one that is too small cuts off large ones. It is also what vLLM's experts with one scale
for all of them take, and so it changes nothing for these.
"""

from typing import Any

import torch

from gb10.vllm_plugin.refusal import refuse
from gb10.vllm_plugin.scales.forms import Form, is_weight_only, label, rounds_activations


def mark_missing(form: Form, layer: torch.nn.Module) -> None:
    """Fill the input scales of a new layer with NaN, so that those which are not loaded can be told."""
    for name in _names(form):
        if (parameter := getattr(layer, name, None)) is not None:
            parameter.data.fill_(torch.nan)


def settle(form: Form, method: Any, layer: Any) -> int:
    """Choose the input scales that are missing, in `layer`; return for how many experts or parts.

    The parts of a linear layer have the same input: they get the largest scale, which vLLM takes for
    ModelOpt, and does not for compressed-tensors, where the largest reciprocal is the smallest scale.

    Raises Refused when no scale of a layer is there and what runs it needs them, or when one is no scale.
    """
    missing = 0
    for name in _names(form):
        if getattr(layer, name, None) is None:
            continue
        scales = form.scales(layer, name)
        absent = scales.isnan()
        present = scales[~absent]
        if not is_weight_only(method) and not bool((present.isfinite() & (present > 0)).all()):
            refuse(
                f"{label(layer)}: {name} is {present.min():g} to {present.max():g}, and scales are positive; "
                "make or fetch the checkpoint again"
            )
        largest = _largest(scales, method, layer)
        if bool(largest == 0):
            if is_weight_only(method) and not form.experts:
                continue  # vLLM drops it
            if rounds_activations(method):
                refuse(
                    f"{label(layer)}: the checkpoint has no {form.activation} for this layer, and its "
                    "activations are to be rounded to NVFP4; calibrate it, or declare it W4A16_NVFP4"
                )
            # Nothing reads it. A number all the same: kernels of the other kind calculate with it.
            largest = torch.ones_like(largest)
        elif not is_weight_only(method):
            missing = max(missing, int(absent.reshape(len(absent), -1).any(1).sum()))
        if form.experts:
            if scales.ndim == 2:
                # Gate and up have the same input.
                other = scales.nan_to_num(0.0).amax(1, keepdim=True).expand_as(scales)
                scales = torch.where(absent & (other > 0), other, scales)
            scales = torch.where(scales.isnan(), largest, scales)
        else:
            scales = largest.expand_as(scales).contiguous()
        if not torch.equal(scales, form.scales(layer, name)):
            form.store(layer, name, scales)
    return missing


def _names(form: Form) -> tuple[str, ...]:
    prefixes = ("w13_", "w2_") if form.experts else ("",)
    return tuple(prefix + form.activation for prefix in prefixes)


def _largest(scales: torch.Tensor, method: Any, layer: Any) -> torch.Tensor:
    """The largest scale that is there, 0 if there is none; with expert parallelism over all ranks."""
    largest = scales.nan_to_num(nan=0.0).max()
    parallel = getattr(getattr(method, "moe", None), "moe_parallel_config", None)
    if parallel is not None and parallel.use_ep and scales.shape[0] == layer.local_num_experts:
        from vllm.distributed.parallel_state import get_ep_group

        group = get_ep_group().device_group
        torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX, group=group)
    return largest
