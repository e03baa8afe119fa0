"""The Qwen3-Next model in plain torch, for training and for evaluation.

Parameters carry the names of the checkpoint, but for the experts, whose tensors are stacked. Every token is
computed by every expert, and the outputs of those that the router did not select get weight 0: the same
result as with routing, in a few large products of fixed shape.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from gb10_lab.testbed import delta
from gb10_lab.testbed.architecture import FULL, LINEAR, TESTBED, Architecture

Site = Callable[[str, Tensor], Tensor]
"""Gets the name of a place in the model and the activation there, and gives the activation to go on with."""


class Weight(nn.Module):
    """One parameter named `weight`."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply by a parameter, in the type of `x`."""
    return functional.linear(x, weight.to(x.dtype))


def _heads(x: Tensor, count: int) -> Tensor:
    """Split the last dimension into `count` parts: [.., n] to [.., count, n / count]."""
    return x.reshape(*x.shape[:-1], count, x.shape[-1] // count)


class Norm(Weight):
    """RMS norm with a zero-centred weight, in float32 or wider. [.., size] to the same in `dtype`."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__(size)
        self._eps = eps

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        x = x.to(self.weight.dtype)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self._eps)
        return (x * (1.0 + self.weight)).to(dtype)


def rotary_tables(arch: Architecture, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Give cosines and sines of positions 0 to `length`-1: float32 [length, rotary_dim / 2] each."""
    half = torch.arange(0, arch.rotary_dim, 2, dtype=torch.float32, device=device)
    frequencies = 1.0 / (arch.rope_theta ** (half / arch.rotary_dim))
    angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first elements of each head, paired half with half. `x` is [B, T, heads, head_dim]."""
    half = cos.shape[-1]
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


class Attention(nn.Module):
    """Gated attention with normed, partly rotated queries and keys."""

    def __init__(self, arch: Architecture, name: str) -> None:
        super().__init__()
        self._name, self._heads, self._kv_heads, self._size = name, arch.heads, arch.kv_heads, arch.head_dim
        self.q_proj = Weight(2 * arch.heads * arch.head_dim, arch.hidden)
        self.k_proj = Weight(arch.kv_heads * arch.head_dim, arch.hidden)
        self.v_proj = Weight(arch.kv_heads * arch.head_dim, arch.hidden)
        self.o_proj = Weight(arch.hidden, arch.heads * arch.head_dim)
        self.q_norm = Norm(arch.head_dim, arch.norm_eps)
        self.k_norm = Norm(arch.head_dim, arch.norm_eps)

    def project(
        self, x: Tensor, cos: Tensor, sin: Tensor, site: Site | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give query [B, heads, T, D], key and value (repeated to all heads), and gate [B, T, heads * D]."""
        if site is not None:
            x = site(f"{self._name}.qkv_proj", x)
        query, gate = _heads(linear(x, self.q_proj.weight), self._heads).chunk(2, dim=-1)
        key = _heads(linear(x, self.k_proj.weight), self._kv_heads)
        value = _heads(linear(x, self.v_proj.weight), self._kv_heads)
        # The rotation happens in float32, as a kernel does it in registers.
        query = rotate(self.q_norm(query, self.q_norm.weight.dtype), cos, sin).to(x.dtype)
        key = rotate(self.k_norm(key, self.k_norm.weight.dtype), cos, sin).to(x.dtype)
        if site is not None:
            key = site(f"{self._name}.k_cache", key)
            value = site(f"{self._name}.v_cache", value)
        key, value = (y.repeat_interleave(self._heads // self._kv_heads, dim=2) for y in (key, value))
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), gate.flatten(2)

    def finish(self, out: Tensor, gate: Tensor, site: Site | None) -> Tensor:
        """Gate the attention's output [B, heads, T, D] and project it to [B, T, hidden]."""
        out = out.transpose(1, 2).flatten(2) * gate.sigmoid()
        if site is not None:
            out = site(f"{self._name}.o_proj", out)
        return linear(out, self.o_proj.weight)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, site: Site | None) -> Tensor:
        query, key, value, gate = self.project(x, cos, sin, site)
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.finish(out, gate, site)


class DeltaNet(nn.Module):
    """Gated DeltaNet: a causal convolution, the gated delta rule, a gated norm.

    The rows of `in_proj_qkvz` and `in_proj_ba` are grouped by key head, as Qwen3-Next stores them.
    """

    def __init__(self, arch: Architecture, name: str) -> None:
        super().__init__()
        self._name, self._eps = name, arch.norm_eps
        self._key_heads, self._heads, self._size = (
            arch.delta_key_heads,
            arch.delta_value_heads,
            arch.delta_head_dim,
        )
        self._key_size, self._value_size = arch.delta_key_size, arch.delta_value_size
        mixed = 2 * self._key_size + self._value_size
        self.in_proj_qkvz = Weight(mixed + self._value_size, arch.hidden)
        self.in_proj_ba = Weight(2 * self._heads, arch.hidden)
        self.conv1d = Weight(mixed, 1, arch.delta_conv)
        self.A_log = nn.Parameter(torch.zeros(self._heads))
        self.dt_bias = nn.Parameter(torch.zeros(self._heads))
        self.norm = Weight(self._size)
        self.out_proj = Weight(arch.hidden, self._value_size)

    def forward(self, x: Tensor, site: Site | None) -> Tensor:
        if site is not None:
            x = site(f"{self._name}.in_proj", x)
        wide = self.A_log.dtype
        group = self._heads // self._key_heads * self._size
        mixed = _heads(linear(x, self.in_proj_qkvz.weight), self._key_heads)
        query, key, value, gate = (
            part.flatten(2) for part in torch.split(mixed, [self._size, self._size, group, group], dim=-1)
        )
        rates = _heads(linear(x, self.in_proj_ba.weight), self._key_heads)
        b, a = (part.flatten(2).to(wide) for part in rates.chunk(2, dim=-1))
        convolved = self._convolve(torch.cat((query, key, value), dim=-1).to(wide))
        query, key, value = (
            _heads(part, part.shape[-1] // self._size)
            for part in torch.split(convolved, [self._key_size, self._key_size, self._value_size], dim=-1)
        )
        repeats = self._heads // self._key_heads
        query = (delta.unit(query) * self._size**-0.5).repeat_interleave(repeats, dim=2)
        key = delta.unit(key).repeat_interleave(repeats, dim=2)
        log_decay = -self.A_log.exp() * functional.softplus(a + self.dt_bias)
        out = delta.chunked(query, key, value, log_decay, b.sigmoid())
        out = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + self._eps) * self.norm.weight
        gated = out.flatten(2) * functional.silu(gate.to(wide))
        gated = gated.to(x.dtype)
        if site is not None:
            gated = site(f"{self._name}.out_proj", gated)
        return linear(gated, self.out_proj.weight)

    def _convolve(self, x: Tensor) -> Tensor:
        """Mix each channel with its last three values, then silu. [B, T, C] to the same."""
        taps = self.conv1d.weight.shape[-1]
        steps = x.shape[1]
        padded = functional.pad(x, (0, 0, taps - 1, 0))
        mixed = padded[:, :steps] * self.conv1d.weight[:, 0, 0]
        for tap in range(1, taps):
            mixed = mixed + padded[:, tap : tap + steps] * self.conv1d.weight[:, 0, tap]
        return functional.silu(mixed)


class Experts(nn.Module):
    """Stacked weights of the routed experts."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(arch.experts, arch.expert_size, arch.hidden))
        self.up = nn.Parameter(torch.zeros(arch.experts, arch.expert_size, arch.hidden))
        self.down = nn.Parameter(torch.zeros(arch.experts, arch.hidden, arch.expert_size))


class SharedExpert(nn.Module):
    """Weights of the expert that every token uses."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.gate_proj = Weight(arch.shared_expert_size, arch.hidden)
        self.up_proj = Weight(arch.shared_expert_size, arch.hidden)
        self.down_proj = Weight(arch.hidden, arch.shared_expert_size)


class Mixture(nn.Module):
    """Mixture of experts with a gated shared expert."""

    def __init__(self, arch: Architecture, name: str) -> None:
        super().__init__()
        self._name, self._selected = name, arch.experts_per_token
        self.gate = Weight(arch.experts, arch.hidden)
        self.experts = Experts(arch)
        self.shared_expert = SharedExpert(arch)
        self.shared_expert_gate = Weight(1, arch.hidden)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give each expert's weight [B, T, E] (0 where not selected; they sum to 1) and the load balance.

        The balance is the sum over experts of (share of selections) x (mean probability) x experts: 1 when
        all experts are used alike, more when they are not.
        """
        probabilities = linear(x.to(self.gate.weight.dtype), self.gate.weight).softmax(-1)
        top, chosen = probabilities.topk(self._selected, dim=-1)
        weights = torch.zeros_like(probabilities).scatter(-1, chosen, top / top.sum(-1, keepdim=True))
        share = (weights.detach() > 0).to(weights.dtype).mean((0, 1)) / self._selected
        balance = (share * probabilities.mean((0, 1))).sum() * share.numel()
        return weights, balance

    def forward(self, x: Tensor, site: Site | None) -> tuple[Tensor, Tensor]:
        weights, balance = self.route(x)
        experts, shared = self.experts, self.shared_expert
        routed = x if site is None else site(f"{self._name}.experts.gate_up_proj", x)
        gate, up = linear(routed, torch.cat((experts.gate, experts.up)).flatten(0, 1)).chunk(2, dim=-1)
        inner = _heads(functional.silu(gate) * up, experts.gate.shape[0])
        if site is not None:
            # No other token reaches an expert where tokens are routed, so none may be seen here.
            inner = site(f"{self._name}.experts.down_proj", inner * (weights > 0)[..., None])
        inner = (inner * weights[..., None].to(x.dtype)).flatten(-2)
        out = linear(inner, experts.down.transpose(0, 1).flatten(1))

        routed = x if site is None else site(f"{self._name}.shared_expert.gate_up_proj", x)
        gate, up = linear(routed, shared.gate_proj.weight), linear(routed, shared.up_proj.weight)
        inner = functional.silu(gate) * up
        if site is not None:
            inner = site(f"{self._name}.shared_expert.down_proj", inner)
        share = linear(x, self.shared_expert_gate.weight).sigmoid()
        return out + share * linear(inner, shared.down_proj.weight), balance


class Layer(nn.Module):
    """One residual layer: a token mixer, then the mixture of experts.

    The residual stream keeps the type of the parameters; products run in `dtype`.
    """

    def __init__(self, arch: Architecture, kind: str, name: str) -> None:
        super().__init__()
        self.input_layernorm = Norm(arch.hidden, arch.norm_eps)
        self.post_attention_layernorm = Norm(arch.hidden, arch.norm_eps)
        if kind == LINEAR:
            self.linear_attn = DeltaNet(arch, f"{name}.linear_attn")
        else:
            self.self_attn = Attention(arch, f"{name}.self_attn")
        self._is_linear = kind == LINEAR
        self.mlp = Mixture(arch, f"{name}.mlp")

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, site: Site | None
    ) -> tuple[Tensor, Tensor]:
        """Give the residual stream after this layer, [B, T, hidden], and the load balance."""
        normed = self.input_layernorm(x, dtype)
        x = x + (
            self.linear_attn(normed, site) if self._is_linear else self.self_attn(normed, cos, sin, site)
        )
        return self.mix(x, dtype, site)

    def mix(self, x: Tensor, dtype: torch.dtype, site: Site | None) -> tuple[Tensor, Tensor]:
        """Do the second half of the layer."""
        out, balance = self.mlp(self.post_attention_layernorm(x, dtype), site)
        return x + out, balance


class Backbone(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.embed_tokens = Weight(arch.vocabulary, arch.hidden)
        self.layers = nn.ModuleList(
            Layer(arch, kind, f"model.layers.{index}") for index, kind in enumerate(arch.layer_types)
        )
        self.norm = Norm(arch.hidden, arch.norm_eps)


class DraftHead(nn.Module):
    """The multi-token prediction head; `gb10_lab.testbed.mtp` runs it."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.fc = Weight(arch.hidden, 2 * arch.hidden)
        self.layers = nn.ModuleList([Layer(arch, FULL, "mtp.layers.0")])
        self.norm = Norm(arch.hidden, arch.norm_eps)
        self.pre_fc_norm_embedding = Norm(arch.hidden, arch.norm_eps)
        self.pre_fc_norm_hidden = Norm(arch.hidden, arch.norm_eps)

    @property
    def layer(self) -> Layer:
        """The only layer."""
        return cast(Layer, self.layers[0])


class Model(nn.Module):
    """The whole model, its parameters 0. `initialise` or `checkpoint.assign` fills them."""

    def __init__(self, arch: Architecture = TESTBED) -> None:
        super().__init__()
        self.arch = arch
        self.model = Backbone(arch)
        self.lm_head = Weight(arch.vocabulary, arch.hidden)
        self.mtp = DraftHead(arch) if arch.mtp else None
        self.compute: torch.dtype | None = None
        """The type in which products run; the type of the parameters when None."""

    @property
    def dtype(self) -> torch.dtype:
        """The type in which products run."""
        return self.compute or self.lm_head.weight.dtype

    def hidden(self, tokens: Tensor, site: Site | None = None) -> tuple[Tensor, Tensor]:
        """Give the hidden states after the final norm, [B, T, hidden], and the mean load balance.

        `tokens` is int64 [B, T].
        """
        cos, sin = rotary_tables(self.arch, tokens.shape[1], tokens.device)
        x = functional.embedding(tokens, self.model.embed_tokens.weight)
        balances = []
        for layer in self.model.layers:
            x, balance = layer(x, cos, sin, self.dtype, site)
            balances.append(balance)
        return self.model.norm(x, self.dtype), torch.stack(balances).mean()

    def forward(self, tokens: Tensor, site: Site | None = None) -> Tensor:
        """Give the hidden states after the final norm, [B, T, hidden], for int64 tokens [B, T]."""
        return self.hidden(tokens, site)[0]

    def logits(self, hidden: Tensor, site: Site | None = None) -> Tensor:
        """Give [.., vocabulary] in the type of `hidden`."""
        return linear(hidden if site is None else site("lm_head", hidden), self.lm_head.weight)

    def draft_head(self) -> DraftHead:
        """Give the MTP head. It is an error to ask a model without one."""
        return cast(DraftHead, self.mtp)


_EMBEDDING_DEVIATION = 0.1
_HEAD_DEVIATION = 0.02
_FIRST_DECAYS = (1.0, 16.0)
_FIRST_STEPS = (0.001, 0.1)


def initialise(model: Model, seed: int) -> Model:
    """Fill all parameters with random numbers, drawn in the order of the parameters from one CPU generator.

    Matrices get a deviation of half the inverse root of their columns; those that write to the residual
    stream are smaller by the root of twice the number of layers.
    """
    generator = torch.Generator().manual_seed(seed)
    depth = (2 * len(model.arch.layer_types)) ** -0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".A_log"):
                parameter.copy_(
                    torch.empty_like(parameter).uniform_(*_FIRST_DECAYS, generator=generator).log()
                )
            elif name.endswith(".dt_bias"):
                low, high = torch.tensor(_FIRST_STEPS).log().tolist()
                step = torch.empty_like(parameter).uniform_(low, high, generator=generator).exp()
                # The inverse of softplus.
                parameter.copy_(step + (-torch.expm1(-step)).log())
            elif name.endswith("linear_attn.norm.weight"):
                parameter.fill_(1.0)
            elif parameter.dim() == 1:
                parameter.zero_()
            else:
                parameter.normal_(0.0, _deviation(name, parameter, depth), generator=generator)
    return model


def _deviation(name: str, parameter: Tensor, depth: float) -> float:
    if "embed_tokens" in name:
        return _EMBEDDING_DEVIATION
    if "lm_head" in name:
        return _HEAD_DEVIATION
    deviation: float = 0.5 * float(parameter.shape[-1]) ** -0.5
    return deviation * depth if any(part in name for part in ("o_proj", "out_proj", "down")) else deviation
