"""The config.json of full-size models, from their published numbers: weights are not needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gb10.errors import UserError
from gb10.files import write_json

LAYERS_A_PERIOD = 4
"""Every fourth layer of Qwen3-Next attends; fewer layers than these would leave one kind out."""


def _nvfp4(*left_alone: str) -> dict[str, Any]:
    """ModelOpt's section for NVFP4 weights in blocks of 16, and an FP8 KV cache."""
    four_bit = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
    return {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "group_size": 16,
        "kv_cache_quant_algo": "FP8",
        "config_groups": {"group_0": {"input_activations": four_bit, "weights": four_bit}},
        "ignore": list(left_alone),
        "exclude_modules": list(left_alone),
    }


def qwen3_next_80b() -> dict[str, Any]:
    """Qwen3-Next-80B-A3B as NVIDIA's NVFP4 checkpoint has it: attention, GDN inputs and the head in BF16."""
    layer = "model.layers.*"
    attention = (f"{layer}.self_attn.{part}_proj" for part in ("q", "k", "v", "qkv"))
    return {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "torch_dtype": "bfloat16",
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "full_attention_interval": LAYERS_A_PERIOD,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_scaling": None,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "intermediate_size": 5120,
        "router_aux_loss_coef": 0.001,
        "output_router_logits": False,
        "use_cache": True,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "quantization_config": _nvfp4(
            "lm_head",
            f"{layer}.linear_attn.in_proj_qkvz",
            f"{layer}.linear_attn.in_proj_ba",
            f"{layer}.linear_attn.conv1d",
            *attention,
            f"{layer}.mlp.gate",
            f"{layer}.mlp.shared_expert_gate",
            "mtp.*",
        ),
    }


MODELS: dict[str, Callable[[], dict[str, Any]]] = {"qwen3-next-80b": qwen3_next_80b}


def write(name: str, parent: Path, layers: int | None) -> Path:
    """Make a model folder that holds nothing but config.json, with all layers or the first ``layers``.

    The same model gets the same name in ``parent``: the keys of vLLM's compile cache have the folder's path.
    Raises UserError for an unknown name, and for numbers of layers that leave a kind of layer out.
    """
    if name not in MODELS:
        raise UserError(f"--model {name}: no such folder, and the models known here are: {', '.join(MODELS)}")
    config = MODELS[name]()
    if layers is not None:
        most = config["num_hidden_layers"]
        if not LAYERS_A_PERIOD <= layers <= most:
            raise UserError(f"--layers {layers}: choose from {LAYERS_A_PERIOD} to {most}")
        config["num_hidden_layers"] = layers
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    folder = parent.absolute() / f"{name}-{digest[:12]}"
    # Whole, or not there: another run may read it.
    write_json(folder / "config.json", config)
    return folder
