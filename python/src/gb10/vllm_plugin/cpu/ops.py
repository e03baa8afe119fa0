"""The arithmetic on packed NVFP4 weights, as PyTorch custom operators.

torch.compile takes a custom operator as one opaque node. So the data-dependent loop over experts,
and the table look-ups of the format, need no graph: `packed` and `emulate` run with and without compile.
"""

import torch
import torch.nn.functional as F

from gb10.nvfp4.quantize import dequantize, fake_quantize_activations

GATED_ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


def through_reciprocal(scale: torch.Tensor) -> torch.Tensor:
    """Return 1 / (1 / scale) in float32, which is `scale` or the number beside it.

    compressed-tensors stores the reciprocals of global scales, ModelOpt the scales. Where activations are
    rounded to FP4, one bit of a weight's scale can turn a token; after this both forms of a checkpoint have
    the same scales. Once is enough: of what it returns it changes nothing.
    """
    return scale.to(torch.float32).reciprocal().reciprocal()


@torch.library.custom_op("gb10::nvfp4_linear", mutates_args=())
def nvfp4_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    block_scales: torch.Tensor,
    global_scale: torch.Tensor,
    input_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Return x @ dequantise(weight).T (+ bias) in x's dtype.

    x: [..., K] float; packed: [N, K/2] uint8; block_scales: [N, K/16] float8_e4m3fn; global_scale: float32
    scalar or [N]; bias: [N] or None. With an `input_scale` (float32 scalar) x is first quantised and
    dequantised: W4A4 numerics.
    """
    if input_scale is not None:
        x = fake_quantize_activations(x, input_scale)
    return F.linear(x, dequantize(packed, block_scales, global_scale, x.dtype), bias)


@nvfp4_linear.register_fake
def _(
    x: torch.Tensor,
    packed: torch.Tensor,
    block_scales: torch.Tensor,
    global_scale: torch.Tensor,
    input_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], packed.shape[0]))


def gated_activation(name: str, gate_up: torch.Tensor) -> torch.Tensor:
    """Return act(gate) * up for gate_up = [gate | up]: [T, 2 I] -> [T, I], computed in float32."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    if name == "silu":
        gate = F.silu(gate)
    elif name == "gelu":
        gate = F.gelu(gate)
    elif name == "gelu_tanh":
        gate = F.gelu(gate, approximate="tanh")
    else:
        raise NotImplementedError(f"NVFP4 experts on CPU have no activation {name!r}")
    return (gate * up).to(gate_up.dtype)


@torch.library.custom_op("gb10::nvfp4_experts", mutates_args=())
def nvfp4_experts(
    x: torch.Tensor,
    w13: torch.Tensor,
    w13_block_scales: torch.Tensor,
    w13_global_scales: torch.Tensor,
    w2: torch.Tensor,
    w2_block_scales: torch.Tensor,
    w2_global_scales: torch.Tensor,
    w13_input_scale: torch.Tensor | None,
    w2_input_scale: torch.Tensor | None,
    expert_ids: torch.Tensor,
    expert_weights: torch.Tensor | None,
    activation: str,
) -> torch.Tensor:
    """Run each token through its experts and return the (weighted) sum, [T, H] in x's dtype.

    x: [T, H]; w13: [E, 2 I, H/2] uint8, gate rows first; w2: [E, H, I/2] uint8; block scales: float8_e4m3fn,
    one per 16 columns; global scales: float32, [E] or one for each row ([E, 2 I], [E, H]); input scales:
    float32 scalars, or None for W4A16 numerics.
    expert_ids: [T, K] local expert numbers, -1 where the expert lives on another rank.
    expert_weights: [T, K], or None when the router's weight has been applied to x already.
    Sums are held in float32. Experts without a token cost nothing.
    """
    total = torch.zeros(x.shape, dtype=torch.float32)
    if w13_input_scale is not None:
        x = fake_quantize_activations(x, w13_input_scale)
    for expert in sorted(set(expert_ids.flatten().tolist())):
        if expert < 0:
            continue
        token, slot = (expert_ids == expert).nonzero(as_tuple=True)
        up_weight = dequantize(w13[expert], w13_block_scales[expert], w13_global_scales[expert], x.dtype)
        hidden = gated_activation(activation, F.linear(x[token], up_weight))
        if w2_input_scale is not None:
            hidden = fake_quantize_activations(hidden, w2_input_scale)
        down_weight = dequantize(w2[expert], w2_block_scales[expert], w2_global_scales[expert], x.dtype)
        out = F.linear(hidden, down_weight).float()
        if expert_weights is not None:
            out *= expert_weights[token, slot].float().unsqueeze(-1)
        total.index_add_(0, token, out)
    return total.to(x.dtype)


@nvfp4_experts.register_fake
def _(x: torch.Tensor, *_rest: object) -> torch.Tensor:
    return torch.empty_like(x)
