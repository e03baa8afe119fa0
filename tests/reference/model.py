"""Qwen3, Qwen3-MoE and Qwen3-Next, put together from their layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from reference.activations import Rounding
from reference.checkpoint import Checkpoint
from reference.layers import Attention, DenseMlp, GatedDeltaNet, MixtureOfExperts, rms_norm

Block = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class _Layer:
    mixer_norm: torch.Tensor
    mixer: Block
    mlp_norm: torch.Tensor
    mlp: Block


class Model:
    """A decoder in float32. The architecture is read from the checkpoint's `model_type`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        config = checkpoint.config
        self._eps: float = config["rms_norm_eps"]
        self._is_next = _is_next(config)
        self._embedding = checkpoint.tensor("model.embed_tokens.weight")
        self._layers = [self._load_layer(index) for index in range(config["num_hidden_layers"])]
        self._norm = self._norm_weight("model.norm")
        # A tied head is the embedding.
        self._head = checkpoint.linear(
            "model.embed_tokens" if config.get("tie_word_embeddings", False) else "lm_head"
        )

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int], flips: frozenset[Rounding] = frozenset()) -> torch.Tensor:
        """Give the float32 logits [T, vocabulary] that follow each of the T tokens.

        `flips` are close calls of an earlier pass that are to be rounded the other way.
        """
        recorder = self._checkpoint.recorder
        recorder.flips = flips
        recorder.close_calls.clear()
        x = self._embedding[torch.tensor(tokens)]
        for layer in self._layers:
            x = x + layer.mixer(rms_norm(x, layer.mixer_norm, self._eps))
            x = x + layer.mlp(rms_norm(x, layer.mlp_norm, self._eps))
        return self._head(rms_norm(x, self._norm, self._eps))

    def close_calls(self) -> list[Rounding]:
        """Give the roundings of the last pass that were close calls, the closest first."""
        calls = self._checkpoint.recorder.close_calls
        return sorted(calls, key=lambda call: calls[call])

    def _norm_weight(self, prefix: str) -> torch.Tensor:
        """Qwen3-Next stores the weights of its norms minus 1."""
        return self._checkpoint.tensor(f"{prefix}.weight") + (1.0 if self._is_next else 0.0)

    def _load_layer(self, index: int) -> _Layer:
        config = self._checkpoint.config
        prefix = f"model.layers.{index}"
        is_gdn = self._is_next and (index + 1) % config["full_attention_interval"] != 0
        return _Layer(
            mixer_norm=self._norm_weight(f"{prefix}.input_layernorm"),
            mixer=self._load_gdn(f"{prefix}.linear_attn")
            if is_gdn
            else self._load_attention(f"{prefix}.self_attn"),
            mlp_norm=self._norm_weight(f"{prefix}.post_attention_layernorm"),
            mlp=(MixtureOfExperts if "num_experts" in config else DenseMlp).load(
                self._checkpoint, f"{prefix}.mlp"
            ),
        )

    def _load_attention(self, prefix: str) -> Attention:
        config = self._checkpoint.config
        q, k, v, o = (self._checkpoint.linear(f"{prefix}.{name}_proj") for name in "qkvo")
        return Attention(
            qkv_input=self._checkpoint.site([f"{prefix}.{name}_proj" for name in "qkv"]),
            q=q,
            k=k,
            v=v,
            o_input=self._checkpoint.site([f"{prefix}.o_proj"]),
            o=o,
            q_norm=self._norm_weight(f"{prefix}.q_norm"),
            k_norm=self._norm_weight(f"{prefix}.k_norm"),
            head_size=config["head_dim"],
            rotary_size=int(config["head_dim"] * config.get("partial_rotary_factor", 1.0)),
            theta=config["rope_theta"],
            eps=self._eps,
            gated=self._is_next,
        )

    def _load_gdn(self, prefix: str) -> GatedDeltaNet:
        config = self._checkpoint.config
        return GatedDeltaNet(
            in_qkvz=self._checkpoint.linear(f"{prefix}.in_proj_qkvz"),
            in_ba=self._checkpoint.linear(f"{prefix}.in_proj_ba"),
            conv=self._checkpoint.tensor(f"{prefix}.conv1d.weight").squeeze(1),
            log_decay=self._checkpoint.tensor(f"{prefix}.A_log"),
            step_bias=self._checkpoint.tensor(f"{prefix}.dt_bias"),
            # The norm inside GDN is stored as it is used.
            norm=self._checkpoint.tensor(f"{prefix}.norm.weight"),
            out_input=self._checkpoint.site([f"{prefix}.out_proj"]),
            out=self._checkpoint.linear(f"{prefix}.out_proj"),
            key_heads=config["linear_num_key_heads"],
            value_heads=config["linear_num_value_heads"],
            key_size=config["linear_key_head_dim"],
            value_size=config["linear_value_head_dim"],
            eps=self._eps,
        )


def _is_next(config: dict[str, Any]) -> bool:
    model_type = config["model_type"]
    if model_type not in ("qwen3", "qwen3_moe", "qwen3_next"):
        raise ValueError(f"no reference for model_type {model_type!r}")
    return bool(model_type == "qwen3_next")
