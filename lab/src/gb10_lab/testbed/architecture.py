"""Shape of the testbed model, and the configuration file that vLLM and transformers read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gb10.errors import UserError

LINEAR = "linear_attention"
FULL = "full_attention"

END_OF_TEXT = 0
"""Id of <|endoftext|>: it stands between documents."""
END_OF_TURN = 2
"""Id of <|im_end|>."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of a Qwen3-Next model. Sizes are numbers of elements, the rest are counts."""

    vocabulary: int = 6144
    hidden: int = 256
    layer_types: tuple[str, ...] = (LINEAR, LINEAR, LINEAR, FULL) * 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    rotary_dim: int = 16
    """Elements of each head that are rotated by position: a quarter of the head."""
    rope_theta: float = 10000.0
    delta_key_heads: int = 2
    delta_value_heads: int = 4
    delta_head_dim: int = 64
    delta_conv: int = 4
    experts: int = 16
    experts_per_token: int = 4
    expert_size: int = 64
    shared_expert_size: int = 128
    norm_eps: float = 1e-6
    positions: int = 2048
    mtp: bool = True
    """Whether the model has a multi-token prediction head (one full-attention layer)."""

    @property
    def delta_key_size(self) -> int:
        """Elements of all gated-DeltaNet key heads together."""
        return self.delta_key_heads * self.delta_head_dim

    @property
    def delta_value_size(self) -> int:
        """Elements of all gated-DeltaNet value heads together."""
        return self.delta_value_heads * self.delta_head_dim


TESTBED = Architecture()
"""The model of this repository: 13.65 million parameters, 27.3 MB in BF16."""


def to_config(arch: Architecture) -> dict[str, Any]:
    """Give the content of `config.json`."""
    return {
        "architectures": ["Qwen3NextForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": END_OF_TEXT,
        "decoder_sparse_step": 1,
        "dtype": "bfloat16",
        "eos_token_id": END_OF_TURN,
        "full_attention_interval": arch.layer_types.index(FULL) + 1,
        "head_dim": arch.head_dim,
        "hidden_act": "silu",
        "hidden_size": arch.hidden,
        "initializer_range": 0.02,
        # No layer is a plain MLP, but both readers want the number.
        "intermediate_size": arch.expert_size * arch.experts_per_token,
        "layer_types": list(arch.layer_types),
        "linear_conv_kernel_dim": arch.delta_conv,
        "linear_key_head_dim": arch.delta_head_dim,
        "linear_num_key_heads": arch.delta_key_heads,
        "linear_num_value_heads": arch.delta_value_heads,
        "linear_value_head_dim": arch.delta_head_dim,
        "max_position_embeddings": arch.positions,
        "mlp_only_layers": [],
        "model_type": "qwen3_next",
        "moe_intermediate_size": arch.expert_size,
        "norm_topk_prob": True,
        "num_attention_heads": arch.heads,
        "num_experts": arch.experts,
        "num_experts_per_tok": arch.experts_per_token,
        "num_hidden_layers": len(arch.layer_types),
        "num_key_value_heads": arch.kv_heads,
        "num_nextn_predict_layers": int(arch.mtp),
        "output_router_logits": False,
        "pad_token_id": END_OF_TEXT,
        "partial_rotary_factor": arch.rotary_dim / arch.head_dim,
        "rms_norm_eps": arch.norm_eps,
        "rope_scaling": None,
        "rope_theta": arch.rope_theta,
        "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": arch.shared_expert_size,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": arch.vocabulary,
    }


def from_config(config: Mapping[str, Any]) -> Architecture:
    """Read the sizes back from `config.json`. Raises UserError when it is no such model."""
    try:
        if config["model_type"] != "qwen3_next":
            raise UserError(f"config.json describes a {config['model_type']!r} model, not a qwen3_next one")
        return Architecture(
            vocabulary=config["vocab_size"],
            hidden=config["hidden_size"],
            layer_types=tuple(config["layer_types"]),
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            rotary_dim=round(config["head_dim"] * config["partial_rotary_factor"]),
            rope_theta=config["rope_theta"],
            delta_key_heads=config["linear_num_key_heads"],
            delta_value_heads=config["linear_num_value_heads"],
            delta_head_dim=config["linear_key_head_dim"],
            delta_conv=config["linear_conv_kernel_dim"],
            experts=config["num_experts"],
            experts_per_token=config["num_experts_per_tok"],
            expert_size=config["moe_intermediate_size"],
            shared_expert_size=config["shared_expert_intermediate_size"],
            norm_eps=config["rms_norm_eps"],
            positions=config["max_position_embeddings"],
            mtp=bool(config["num_nextn_predict_layers"]),
        )
    except KeyError as error:
        raise UserError(f"config.json has no {error}; is it a model of this recipe?") from error
