"""Shapes and configuration files of the demo models."""

from dataclasses import dataclass
from typing import Any

from gb10.nvfp4 import BLOCK_SIZE

Json = dict[str, Any]

PRODUCER = {"name": "gb10.demo", "version": "0.1.0"}


@dataclass(frozen=True)
class Architecture:
    """One demo architecture. Counts are per model, sizes are numbers of elements."""

    name: str
    """The `model_type` of the Hugging Face configuration, and the word for `--arch`."""
    model_class: str
    """The `architectures` entry, by which vLLM finds its model class."""
    unquantized: tuple[str, ...]
    """Module patterns that stay BF16, as ModelOpt lists them."""
    layer_types: tuple[str, ...]
    """`linear_attention` (gated delta net) or `full_attention`, one per layer."""
    shared_expert: int
    """Intermediate size of the shared expert; 0 for none."""
    mtp_layers: int
    """Layers of the multi-token prediction head; 0 for none."""
    norm_offset: float
    """What the model adds to its stored norm weights: 1 for zero-centred norms, 0 for plain ones."""
    attention_gate: bool
    """Whether the query projection also makes an output gate, which doubles its rows."""
    partial_rotary: float
    """The part of each head that is rotated by position."""

    hidden: int = 256
    vocabulary: int = 4096
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    experts: int = 16
    experts_per_token: int = 4
    moe_intermediate: int = 128
    gdn_key_heads: int = 2
    gdn_value_heads: int = 4
    gdn_head_dim: int = 128
    gdn_conv: int = 4
    max_positions: int = 4096

    @property
    def gdn_key_size(self) -> int:
        """Elements of all GDN key heads together."""
        return self.gdn_key_heads * self.gdn_head_dim

    @property
    def gdn_value_size(self) -> int:
        """Elements of all GDN value heads together."""
        return self.gdn_value_heads * self.gdn_head_dim


_ROUTER = "model.layers.*.mlp.gate"

QWEN3_NEXT = Architecture(
    name="qwen3_next",
    model_class="Qwen3NextForCausalLM",
    unquantized=(
        "lm_head",
        "model.layers.*.linear_attn.in_proj_qkvz",
        "model.layers.*.linear_attn.in_proj_ba",
        "model.layers.*.linear_attn.conv1d",
        "model.layers.*.self_attn.q_proj",
        "model.layers.*.self_attn.k_proj",
        "model.layers.*.self_attn.v_proj",
        "model.layers.*.self_attn.qkv_proj",
        _ROUTER,
        "model.layers.*.mlp.shared_expert_gate",
        "mtp.*",
    ),
    layer_types=("linear_attention", "linear_attention", "linear_attention", "full_attention"),
    shared_expert=128,
    mtp_layers=1,
    norm_offset=1.0,
    attention_gate=True,
    partial_rotary=0.25,
)
"""Three GDN layers to one attention layer, a shared expert, an MTP head: Qwen3-Next-80B-A3B made small."""

QWEN3_MOE = Architecture(
    name="qwen3_moe",
    model_class="Qwen3MoeForCausalLM",
    unquantized=("lm_head", _ROUTER),
    layer_types=("full_attention",) * 4,
    shared_expert=0,
    mtp_layers=0,
    norm_offset=0.0,
    attention_gate=False,
    partial_rotary=1.0,
)
"""Attention only, all projections NVFP4. vLLM runs it in float32 too on a CPU: for exact comparisons."""

ARCHITECTURES = {architecture.name: architecture for architecture in (QWEN3_NEXT, QWEN3_MOE)}


def model_config(arch: Architecture, *, end_of_turn: int, end_of_text: int) -> Json:
    """Give the content of `config.json`. The two arguments are token ids."""
    config: Json = {
        "architectures": [arch.model_class],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": end_of_text,
        "decoder_sparse_step": 1,
        "dtype": "bfloat16",
        "eos_token_id": end_of_turn,
        "head_dim": arch.head_dim,
        "hidden_act": "silu",
        "hidden_size": arch.hidden,
        "initializer_range": 0.02,
        "intermediate_size": arch.moe_intermediate * arch.experts_per_token,
        "max_position_embeddings": arch.max_positions,
        "mlp_only_layers": [],
        "model_type": arch.name,
        "moe_intermediate_size": arch.moe_intermediate,
        "norm_topk_prob": True,
        "num_attention_heads": arch.heads,
        "num_experts": arch.experts,
        "num_experts_per_tok": arch.experts_per_token,
        "num_hidden_layers": len(arch.layer_types),
        "num_key_value_heads": arch.kv_heads,
        "output_router_logits": False,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10000000,
        "router_aux_loss_coef": 0.001,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": arch.vocabulary,
    }
    if "linear_attention" in arch.layer_types:
        config |= {
            "full_attention_interval": arch.layer_types.index("full_attention") + 1,
            "linear_conv_kernel_dim": arch.gdn_conv,
            "linear_key_head_dim": arch.gdn_head_dim,
            "linear_num_key_heads": arch.gdn_key_heads,
            "linear_num_value_heads": arch.gdn_value_heads,
            "linear_value_head_dim": arch.gdn_head_dim,
            "partial_rotary_factor": arch.partial_rotary,
        }
    if arch.shared_expert:
        config["shared_expert_intermediate_size"] = arch.shared_expert
    return dict(sorted(config.items())) | {"quantization_config": _quantization_config(arch)}


def modelopt_config(arch: Architecture) -> Json:
    """Give the content of `hf_quant_config.json`, the file that ModelOpt itself writes."""
    return {
        "producer": PRODUCER,
        "quantization": {
            "quant_algo": "NVFP4",
            "kv_cache_quant_algo": None,
            "group_size": BLOCK_SIZE,
            "exclude_modules": list(arch.unquantized),
        },
    }


def _quantization_config(arch: Architecture) -> Json:
    operand = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": BLOCK_SIZE}
    return {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "group_size": BLOCK_SIZE,
        "config_groups": {
            "group_0": {"input_activations": operand, "weights": operand, "targets": ["Linear"]}
        },
        "ignore": list(arch.unquantized),
        "exclude_modules": list(arch.unquantized),
        "producer": PRODUCER,
    }
