"""Qwen3-MoE and Qwen3 models with random weights: vLLM runs both architectures in float32 on a CPU too.

Attention only. They are not trained and write nonsense, but comparisons with them are exact to the last few
bits, which the trained model's gated delta net, bfloat16 in vLLM's CPU kernels, does not allow.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

HIDDEN = 256
LAYERS = 4
HEADS = 4
KV_HEADS = 2
HEAD_SIZE = 64
EXPERTS = 16
EXPERTS_PER_TOKEN = 4
INTERMEDIATE = 128
POSITIONS = 2048

UNQUANTIZED = ("lm_head", "model.layers.*.mlp.gate")
"""All projections become NVFP4, those of attention too."""

_INPUT_AMAX = 8.0
_NORM_DEVIATION = 0.05
_EMBEDDING_DEVIATION = 0.5
_LOGIT_DEVIATION = 2.0

_TOKENIZER_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")


def write_random_moe(folder: Path, tokenizer_from: Path) -> None:
    """Write a BF16 checkpoint with a calibration to the new folder, with another model's tokenizer."""
    _write(folder, tokenizer_from, dense=False)


def write_random_dense(folder: Path, tokenizer_from: Path) -> None:
    """As `write_random_moe`, with one MLP in each layer: Qwen3."""
    _write(folder, tokenizer_from, dense=True)


def _write(folder: Path, tokenizer_from: Path, *, dense: bool) -> None:
    folder.mkdir(parents=True)
    for name in _TOKENIZER_FILES:
        shutil.copyfile(tokenizer_from / name, folder / name)
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    (folder / "config.json").write_text(json.dumps(_config(vocabulary, dense=dense)), encoding="utf-8")
    calibration = {"tokens": 0, "amax": dict.fromkeys(_sites(dense=dense), _INPUT_AMAX)}
    (folder / "calibration.json").write_text(json.dumps(calibration), encoding="utf-8")
    save_file(_weights(vocabulary, dense=dense), folder / "model.safetensors", metadata={"format": "pt"})


def _config(vocabulary: int, *, dense: bool) -> dict[str, Any]:
    experts = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": INTERMEDIATE,
        "norm_topk_prob": True,
        "num_experts": EXPERTS,
        "num_experts_per_tok": EXPERTS_PER_TOKEN,
    }
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 0,
        "dtype": "bfloat16",
        "eos_token_id": 2,
        "head_dim": HEAD_SIZE,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE * EXPERTS_PER_TOKEN,
        "max_position_embeddings": POSITIONS,
        "model_type": "qwen3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10000000,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": vocabulary,
    } | ({} if dense else experts)


def _sites(*, dense: bool) -> list[str]:
    mlp = "mlp" if dense else "mlp.experts"
    parts = ("self_attn.qkv_proj", "self_attn.o_proj", f"{mlp}.gate_up_proj", f"{mlp}.down_proj")
    return [f"model.layers.{layer}.{part}" for layer in range(LAYERS) for part in parts]


def _weights(vocabulary: int, *, dense: bool) -> dict[str, torch.Tensor]:
    """Random tensors whose scales keep the residual stream near 1."""
    linears = {"lm_head": (vocabulary, HIDDEN, _LOGIT_DEVIATION)}
    norms = {"model.norm": HIDDEN}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        norms |= {f"{prefix}.{name}_layernorm": HIDDEN for name in ("input", "post_attention")}
        norms |= {f"{prefix}.self_attn.{name}_norm": HEAD_SIZE for name in "qk"}
        linears |= {
            f"{prefix}.self_attn.q_proj": (HEADS * HEAD_SIZE, HIDDEN, 1.0),
            f"{prefix}.self_attn.k_proj": (KV_HEADS * HEAD_SIZE, HIDDEN, 1.0),
            f"{prefix}.self_attn.v_proj": (KV_HEADS * HEAD_SIZE, HIDDEN, 1.0),
            f"{prefix}.self_attn.o_proj": (HIDDEN, HEADS * HEAD_SIZE, 1.0),
        }
        size, names = INTERMEDIATE * EXPERTS_PER_TOKEN, [f"{prefix}.mlp"]
        if not dense:
            linears[f"{prefix}.mlp.gate"] = (EXPERTS, HIDDEN, _LOGIT_DEVIATION)
            size, names = INTERMEDIATE, [f"{prefix}.mlp.experts.{expert}" for expert in range(EXPERTS)]
        for name in names:
            linears |= {f"{name}.{part}_proj": (size, HIDDEN, 1.0) for part in ("gate", "up")}
            linears[f"{name}.down_proj"] = (HIDDEN, size, 1.0)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "model.embed_tokens.weight": _EMBEDDING_DEVIATION
        * torch.randn(vocabulary, HIDDEN, generator=generator)
    }
    for name, (rows, columns, deviation) in linears.items():
        tensors[f"{name}.weight"] = (
            deviation * columns**-0.5 * torch.randn(rows, columns, generator=generator)
        )
    for name, size in norms.items():
        tensors[f"{name}.weight"] = 1 + _NORM_DEVIATION * torch.randn(size, generator=generator)
    return {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
