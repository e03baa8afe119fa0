"""The parts of the Qwen3 models, for one sequence: [T, ...] float32 in, [T, ...] float32 out."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from reference.activations import Site
from reference.checkpoint import Checkpoint, Linear


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Divide by the root mean square over the last dimension and multiply by `weight`."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def rotate(x: torch.Tensor, rotary_size: int, theta: float) -> torch.Tensor:
    """Turn the first `rotary_size` elements of each head by its position. x: [T, heads, D].

    Element i is paired with element i + rotary_size / 2. They turn by position * theta^(-2 i / rotary_size).
    """
    half = rotary_size // 2
    positions = torch.arange(x.shape[0], dtype=torch.float32)
    speeds = theta ** (-torch.arange(half, dtype=torch.float32) * 2 / rotary_size)
    angles = torch.outer(positions, speeds).unsqueeze(1)
    first, second, rest = x[..., :half], x[..., half:rotary_size], x[..., rotary_size:]
    return torch.cat(
        (
            first * angles.cos() - second * angles.sin(),
            second * angles.cos() + first * angles.sin(),
            rest,
        ),
        dim=-1,
    )


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention with grouped key and value heads. q: [T, heads, D]; k, v: [T, kv heads, D]."""
    length, heads, size = q.shape
    k = k.repeat_interleave(heads // k.shape[1], dim=1)
    v = v.repeat_interleave(heads // v.shape[1], dim=1)
    scores = torch.einsum("thd,shd->hts", q, k) * size**-0.5
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    return torch.einsum("hts,shd->thd", weights, v)


@dataclass(frozen=True)
class Attention:
    """Attention with normed queries and keys, rotary positions and (Qwen3-Next) a gate on its output."""

    qkv_input: Site
    q: Linear
    k: Linear
    v: Linear
    o_input: Site
    o: Linear
    q_norm: torch.Tensor
    k_norm: torch.Tensor
    head_size: int
    rotary_size: int
    theta: float
    eps: float
    gated: bool

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[0]
        x = self.qkv_input(x)
        q = self.q(x).view(length, -1, self.head_size * (2 if self.gated else 1))
        q, gate = q[..., : self.head_size], q[..., self.head_size :]
        k = self.k(x).view(length, -1, self.head_size)
        v = self.v(x).view(length, -1, self.head_size)
        q = rotate(rms_norm(q, self.q_norm, self.eps), self.rotary_size, self.theta)
        k = rotate(rms_norm(k, self.k_norm, self.eps), self.rotary_size, self.theta)
        out = causal_attention(q, k, v)
        if self.gated:
            out = out * gate.sigmoid()
        return self.o(self.o_input(out.reshape(length, -1)))


@dataclass(frozen=True)
class GatedMlp:
    """down(silu(gate(x)) * up(x)), for x that has been through its input site."""

    gate: Linear
    up: Linear
    down_input: Site
    down: Linear

    @classmethod
    def load(cls, checkpoint: Checkpoint, prefix: str) -> "GatedMlp":
        gate, up, down = (checkpoint.linear(f"{prefix}.{name}_proj") for name in ("gate", "up", "down"))
        return cls(gate, up, checkpoint.site([f"{prefix}.down_proj"]), down)

    def __call__(self, x: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
        return self.down(self.down_input(F.silu(self.gate(x)) * self.up(x), tokens))


@dataclass(frozen=True)
class DenseMlp:
    """The MLP of a model without experts; with a gate in front, the shared expert of one that has them."""

    mlp: GatedMlp
    mlp_input: Site

    @classmethod
    def load(cls, checkpoint: Checkpoint, prefix: str) -> "DenseMlp":
        site = checkpoint.site([f"{prefix}.gate_proj", f"{prefix}.up_proj"])
        return cls(GatedMlp.load(checkpoint, prefix), site)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.mlp_input(x))


@dataclass(frozen=True)
class SharedExpert:
    """The expert of Qwen3-Next that every token goes through, with a gate of its own."""

    mlp: DenseMlp
    gate: Linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.gate(x).sigmoid() * self.mlp(x)


@dataclass(frozen=True)
class MixtureOfExperts:
    """Each token goes through its most probable experts, and through the shared one where there is one."""

    router: Linear
    experts_input: Site
    experts: list[GatedMlp]
    per_token: int
    renormalize: bool
    shared: SharedExpert | None

    @classmethod
    def load(cls, checkpoint: Checkpoint, prefix: str) -> "MixtureOfExperts":
        config = checkpoint.config
        names = [f"{prefix}.experts.{index}" for index in range(config["num_experts"])]
        shared = None
        if config.get("shared_expert_intermediate_size", 0) > 0:
            shared = SharedExpert(
                mlp=DenseMlp.load(checkpoint, f"{prefix}.shared_expert"),
                gate=checkpoint.linear(f"{prefix}.shared_expert_gate"),
            )
        return cls(
            router=checkpoint.linear(f"{prefix}.gate"),
            experts_input=checkpoint.site(
                [f"{name}.{part}_proj" for name in names for part in ("gate", "up")]
            ),
            experts=[GatedMlp.load(checkpoint, name) for name in names],
            per_token=config["num_experts_per_tok"],
            renormalize=config["norm_topk_prob"],
            shared=shared,
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(self.per_token, dim=-1)
        if self.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        expert_x = self.experts_input(x)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, place = (chosen == number).nonzero(as_tuple=True)
            if token.numel():
                out[token] += weights[token, place].unsqueeze(-1) * expert(expert_x[token], token)
        return out if self.shared is None else out + self.shared(x)


@dataclass(frozen=True)
class GatedDeltaNet:
    """Linear attention with the gated delta rule: one state matrix per head, updated token by token."""

    in_qkvz: Linear
    in_ba: Linear
    conv: torch.Tensor
    """float32 [channels, taps]: one causal filter per channel of (q, k, v)"""
    log_decay: torch.Tensor
    step_bias: torch.Tensor
    norm: torch.Tensor
    out_input: Site
    out: Linear
    key_heads: int
    value_heads: int
    key_size: int
    value_size: int
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v, z, b, a = self._split(x)
        q, k, v = self._convolve(q, k, v)
        # Each key head serves a group of neighbouring value heads.
        group = self.value_heads // self.key_heads
        q = _unit(q).repeat_interleave(group, dim=1) * self.key_size**-0.5
        k = _unit(k).repeat_interleave(group, dim=1)
        decay = torch.exp(-self.log_decay.exp() * F.softplus(a + self.step_bias))
        o = self._recur(q, k, v, decay, b.sigmoid())
        o = rms_norm(o, self.norm, self.eps) * F.silu(z)
        return self.out(self.out_input(o.flatten(1)))

    def _split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Project x and sort the rows out: they are grouped by key head."""
        group = self.value_heads // self.key_heads
        values = group * self.value_size
        qkvz = self.in_qkvz(x).reshape(x.shape[0], self.key_heads, -1)
        q, k, v, z = torch.split(qkvz, [self.key_size, self.key_size, values, values], dim=-1)
        b, a = self.in_ba(x).reshape(x.shape[0], self.key_heads, 2 * group).chunk(2, dim=-1)
        by_head = (-1, self.value_heads, self.value_size)
        return q, k, v.reshape(by_head), z.reshape(by_head), b.flatten(1), a.flatten(1)

    def _convolve(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Filter each channel over the last few tokens, then SiLU."""
        channels = torch.cat((q.flatten(1), k.flatten(1), v.flatten(1)), dim=1)
        taps = self.conv.shape[1]
        padded = F.pad(channels, (0, 0, taps - 1, 0))
        windows = padded.unfold(0, taps, 1)
        mixed = F.silu((windows * self.conv).sum(-1))
        parts = torch.split(mixed, [q[0].numel(), k[0].numel(), v[0].numel()], dim=1)
        return tuple(part.reshape(like.shape) for part, like in zip(parts, (q, k, v), strict=True))

    def _recur(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, step: torch.Tensor
    ) -> torch.Tensor:
        """Run the state over the tokens. q, k: [T, heads, Dk]; v: [T, heads, Dv]; decay, step: [T, heads]."""
        state = torch.zeros(self.value_heads, self.key_size, self.value_size)
        rows = []
        for t in range(q.shape[0]):
            state = state * decay[t, :, None, None]
            known = torch.einsum("hkv,hk->hv", state, k[t])
            state = state + torch.einsum("hk,hv->hkv", k[t], step[t, :, None] * (v[t] - known))
            rows.append(torch.einsum("hkv,hk->hv", state, q[t]))
        return torch.stack(rows)


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Scale the last dimension to length 1."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
