"""Random weights for a demo model, in ModelOpt's names and NVFP4 format.

The scales of the random numbers keep the residual stream near 1 and the logits within about 20, whatever
the input.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch

from gb10.demo import randoms
from gb10.demo.architecture import Architecture
from gb10.nvfp4 import GLOBAL_SCALE_DIVISOR, global_scale_for, quantize

ACTIVATION_AMAX = 8.0
"""The calibrated largest activation. RMS-normed activations of 256 elements stay below it in practice."""

_NORM_DEVIATION = 0.05
_EMBEDDING_DEVIATION = 0.5
_ROUTER_LOGIT_DEVIATION = 2.0
_HEAD_PREDICTION = 0.1
_HEAD_NOISE = 0.04
_CONV_DEVIATION = 0.5
_GDN_LOG_DECAY = (0.0, 2.5)
_GDN_STEP_BIAS = (-5.0, -1.0)

Tensors = dict[str, torch.Tensor]


def make_weights(arch: Architecture, seed: int, readable: Iterable[int]) -> Tensors:
    """Make all tensors of the checkpoint: packed weights and scales for quantised modules, BF16 for the rest.

    `readable` are the token ids that a prediction may show. The output head ties them into one ring: after
    each of them the next one is likely. That makes the text printable, and makes the MTP head, which knows
    the same ring, guess right often enough for its drafts to be accepted.
    """
    return _Maker(arch, seed).make(list(readable))


class _Maker:
    def __init__(self, arch: Architecture, seed: int) -> None:
        self._arch = arch
        self._seed = seed
        self._tensors: Tensors = {}

    def make(self, readable: list[int]) -> Tensors:
        arch = self._arch
        embedding = self._normal(
            "model.embed_tokens.weight", (arch.vocabulary, arch.hidden), _EMBEDDING_DEVIATION
        )
        self._put("model.embed_tokens.weight", embedding)
        self._put("lm_head.weight", self._head(embedding, readable))
        self._norm("model.norm", arch.hidden)
        for index, layer_type in enumerate(arch.layer_types):
            self._layer(f"model.layers.{index}", layer_type)
        if arch.mtp_layers:
            self._mtp()
        return self._tensors

    def _layer(self, prefix: str, layer_type: str) -> None:
        self._norm(f"{prefix}.input_layernorm", self._arch.hidden)
        self._norm(f"{prefix}.post_attention_layernorm", self._arch.hidden)
        if layer_type == "linear_attention":
            self._gdn(f"{prefix}.linear_attn")
        else:
            self._attention(f"{prefix}.self_attn")
        self._moe(f"{prefix}.mlp")

    def _attention(self, prefix: str) -> None:
        arch = self._arch
        query = arch.heads * arch.head_dim
        rows = {
            "q_proj": query * (2 if arch.attention_gate else 1),
            "k_proj": arch.kv_heads * arch.head_dim,
            "v_proj": arch.kv_heads * arch.head_dim,
        }
        self._linears(prefix, rows, arch.hidden)
        self._linears(prefix, {"o_proj": arch.hidden}, query)
        self._norm(f"{prefix}.q_norm", arch.head_dim)
        self._norm(f"{prefix}.k_norm", arch.head_dim)

    def _gdn(self, prefix: str) -> None:
        arch = self._arch
        mixed = 2 * arch.gdn_key_size + arch.gdn_value_size
        self._linears(prefix, {"in_proj_qkvz": mixed + arch.gdn_value_size}, arch.hidden)
        self._linears(prefix, {"in_proj_ba": 2 * arch.gdn_value_heads}, arch.hidden)
        self._random(f"{prefix}.conv1d.weight", (mixed, 1, arch.gdn_conv), _CONV_DEVIATION)
        heads = (arch.gdn_value_heads,)
        self._put(f"{prefix}.A_log", randoms.uniform(self._seed, f"{prefix}.A_log", heads, *_GDN_LOG_DECAY))
        self._put(
            f"{prefix}.dt_bias", randoms.uniform(self._seed, f"{prefix}.dt_bias", heads, *_GDN_STEP_BIAS)
        )
        # The gated norm of GDN is a plain one, unlike the other norms of this architecture.
        self._norm(f"{prefix}.norm", arch.gdn_head_dim, centre=1.0)
        self._linears(prefix, {"out_proj": arch.hidden}, arch.gdn_value_size)

    def _moe(self, prefix: str) -> None:
        arch = self._arch
        self._random(
            f"{prefix}.gate.weight", (arch.experts, arch.hidden), _ROUTER_LOGIT_DEVIATION * arch.hidden**-0.5
        )
        for expert in range(arch.experts):
            self._mlp(f"{prefix}.experts.{expert}", arch.moe_intermediate)
        if arch.shared_expert:
            self._mlp(f"{prefix}.shared_expert", arch.shared_expert)
            self._linears(prefix, {"shared_expert_gate": 1}, arch.hidden)

    def _mlp(self, prefix: str, intermediate: int) -> None:
        hidden = self._arch.hidden
        self._linears(prefix, {"gate_proj": intermediate, "up_proj": intermediate}, hidden)
        self._linears(prefix, {"down_proj": hidden}, intermediate)

    def _mtp(self) -> None:
        hidden = self._arch.hidden
        for name in ("mtp.norm", "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden"):
            self._norm(name, hidden)
        # The left half takes the embedding of the newest token, the right half the hidden state before it.
        from_hidden = self._normal("mtp.fc.weight", (hidden, hidden), 0.25 * hidden**-0.5)
        self._put("mtp.fc.weight", torch.cat((torch.eye(hidden), from_hidden), dim=1))
        for index in range(self._arch.mtp_layers):
            self._layer(f"mtp.layers.{index}", "full_attention")

    def _head(self, embedding: torch.Tensor, readable: list[int]) -> torch.Tensor:
        head = self._normal("lm_head.weight", tuple(embedding.shape), _HEAD_NOISE)
        ring = torch.tensor(
            [readable[place] for place in randoms.permutation(self._seed, "ring", len(readable))]
        )
        head[ring.roll(-1)] += (_HEAD_PREDICTION / _EMBEDDING_DEVIATION) * embedding[ring]
        return head

    def _linears(self, prefix: str, rows: dict[str, int], columns: int) -> None:
        """Make linear layers with one common input. The engine fuses them, so they share global scales."""
        weights = {
            f"{prefix}.{name}": self._normal(f"{prefix}.{name}.weight", (count, columns), columns**-0.5)
            for name, count in rows.items()
        }
        scale = global_scale_for(max(float(weight.abs().max()) for weight in weights.values()))
        for module, weight in weights.items():
            if any(fnmatchcase(module, pattern) for pattern in self._arch.unquantized):
                self._put(f"{module}.weight", weight)
                continue
            stored = quantize(weight, scale)
            self._tensors |= {
                f"{module}.weight": stored.packed,
                f"{module}.weight_scale": stored.block_scales,
                f"{module}.weight_scale_2": stored.global_scale.clone(),
                f"{module}.input_scale": torch.tensor(ACTIVATION_AMAX / GLOBAL_SCALE_DIVISOR),
            }

    def _norm(self, name: str, size: int, centre: float | None = None) -> None:
        stored_centre = 1.0 - self._arch.norm_offset if centre is None else centre
        self._put(f"{name}.weight", stored_centre + self._normal(f"{name}.weight", (size,), _NORM_DEVIATION))

    def _random(self, name: str, shape: tuple[int, ...], deviation: float) -> None:
        self._put(name, self._normal(name, shape, deviation))

    def _normal(self, name: str, shape: tuple[int, ...], deviation: float) -> torch.Tensor:
        return randoms.normal(self._seed, name, shape, deviation)

    def _put(self, name: str, tensor: torch.Tensor) -> None:
        self._tensors[name] = tensor.to(torch.bfloat16)
