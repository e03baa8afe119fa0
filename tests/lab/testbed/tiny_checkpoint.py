"""A tiny BF16 checkpoint with Qwen3-Next's names, made of whole numbers only: the same bits everywhere."""

import json
import math
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

HIDDEN = 32
EXPERTS = 2
INTERMEDIATE = 16
VOCABULARY = 40

LAYER = {
    "mlp.gate.weight": (EXPERTS, HIDDEN),
    "mlp.shared_expert_gate.weight": (1, HIDDEN),
    "input_layernorm.weight": (HIDDEN,),
    "post_attention_layernorm.weight": (HIDDEN,),
} | {
    f"mlp.{expert}.{name}.weight": shape
    for expert in (*(f"experts.{number}" for number in range(EXPERTS)), "shared_expert")
    for name, shape in {
        "gate_proj": (INTERMEDIATE, HIDDEN),
        "up_proj": (INTERMEDIATE, HIDDEN),
        "down_proj": (HIDDEN, INTERMEDIATE),
    }.items()
}
ATTENTION = {
    "self_attn.q_proj.weight": (64, HIDDEN),
    "self_attn.k_proj.weight": (16, HIDDEN),
    "self_attn.v_proj.weight": (16, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, 32),
    "self_attn.q_norm.weight": (16,),
    "self_attn.k_norm.weight": (16,),
}
GDN = {
    "linear_attn.in_proj_qkvz.weight": (96, HIDDEN),
    "linear_attn.in_proj_ba.weight": (4, HIDDEN),
    "linear_attn.conv1d.weight": (64, 1, 4),
    "linear_attn.A_log": (2,),
    "linear_attn.dt_bias": (2,),
    "linear_attn.norm.weight": (16,),
    "linear_attn.out_proj.weight": (HIDDEN, 32),
}
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
    "model.norm.weight": (HIDDEN,),
    "lm_head.weight": (VOCABULARY, HIDDEN),
    "mtp.fc.weight": (HIDDEN, 2 * HIDDEN),
    "mtp.norm.weight": (HIDDEN,),
    **{f"model.layers.0.{name}": shape for name, shape in (GDN | LAYER).items()},
    **{f"model.layers.1.{name}": shape for name, shape in (ATTENTION | LAYER).items()},
    **{f"mtp.layers.0.{name}": shape for name, shape in (ATTENTION | LAYER).items()},
}

SITES = (
    "model.layers.0.linear_attn.in_proj",
    "model.layers.0.linear_attn.out_proj",
    "model.layers.1.self_attn.qkv_proj",
    "model.layers.1.self_attn.o_proj",
    *(
        f"model.layers.{layer}.mlp.{part}.{name}"
        for layer in (0, 1)
        for part in ("experts", "shared_expert")
        for name in ("gate_up_proj", "down_proj")
    ),
    "lm_head",
)


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """BF16 numbers of both signs; magnitudes differ by block and by tensor."""
    salt = zlib.crc32(name.encode())
    numbers = (torch.arange(math.prod(shape), dtype=torch.int64) + salt % 1009) * 48271 % 2039 - 1019
    block = 2.0 ** (torch.arange(math.prod(shape)) // 16 % 7 + salt % 3 - 4)
    return (numbers.to(torch.float32) / 1024 * block).reshape(shape).to(torch.bfloat16)


def tensors() -> Tensors:
    """All tensors of the checkpoint."""
    return {name: weight(name, shape) for name, shape in SHAPES.items()}


def amax() -> dict[str, float]:
    """A different calibrated amax for each input site."""
    return {site: 1.7 + 0.37 * number for number, site in enumerate(SITES)}


def write(folder: Path) -> Path:
    """Write the checkpoint to the new folder and return it."""
    folder.mkdir(parents=True)
    config = {"architectures": ["Qwen3NextForCausalLM"], "hidden_size": HIDDEN, "model_type": "qwen3_next"}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps({"file": name}))
    (folder / "calibration.json").write_text(json.dumps({"tokens": 64, "amax": amax()}))
    save_file(tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder
