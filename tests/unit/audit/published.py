"""Headers of two published checkpoints, made from their configurations: names, types and shapes, no weights.

No file of those checkpoints is here. What shows that the headers are theirs is in test_published.py: what
others counted in the files, and vLLM's own model, which takes each tensor and misses none.
"""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BYTES = {"BF16": 2, "F32": 4, "U8": 1, "F8_E4M3": 1}
_LINEAR = ["linear_attention"] * 3 + ["full_attention"]
_FOUR = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
_EIGHT = {"dynamic": False, "num_bits": 8, "type": "float"}

Spec = tuple[str, str, tuple[int, ...]]
"""Name, type and shape of a tensor."""


@dataclass(frozen=True)
class Published:
    """A checkpoint: config.json, hf_quant_config.json where it matters, and its tensors."""

    config: dict[str, Any]
    tensors: tuple[Spec, ...]
    side: dict[str, Any] | None = None


def _plain(name: str, *shape: int) -> Iterator[Spec]:
    yield f"{name}.weight", "BF16", shape


def _nvfp4(name: str, rows: int, columns: int) -> Iterator[Spec]:
    """As ModelOpt writes it."""
    yield f"{name}.weight", "U8", (rows, columns // 2)
    yield f"{name}.weight_scale", "F8_E4M3", (rows, columns // 16)
    yield f"{name}.weight_scale_2", "F32", ()
    yield f"{name}.input_scale", "F32", ()


def _fp8(name: str, rows: int, columns: int) -> Iterator[Spec]:
    yield f"{name}.weight", "F8_E4M3", (rows, columns)
    yield f"{name}.weight_scale", "F32", ()
    yield f"{name}.input_scale", "F32", ()


def _mlp(name: str, hidden: int, inner: int, matrix: Any) -> Iterator[Spec]:
    yield from matrix(f"{name}.gate_proj", inner, hidden)
    yield from matrix(f"{name}.up_proj", inner, hidden)
    yield from matrix(f"{name}.down_proj", hidden, inner)


def _norms(layer: str, hidden: int) -> Iterator[Spec]:
    yield from _plain(f"{layer}.input_layernorm", hidden)
    yield from _plain(f"{layer}.post_attention_layernorm", hidden)


def _gdn(name: str) -> Iterator[Spec]:
    """What both models have of it beside the projections: 16 key and 32 value heads of 128."""
    yield f"{name}.conv1d.weight", "BF16", (8192, 1, 4)
    yield f"{name}.A_log", "BF16", (32,)
    yield f"{name}.dt_bias", "BF16", (32,)
    yield from _plain(f"{name}.norm", 128)


def _attention(name: str, hidden: int, matrix: Any, out: Any) -> Iterator[Spec]:
    """16 heads of 256, each with its gate, and 2 of keys and values."""
    yield from matrix(f"{name}.q_proj", 8192, hidden)
    yield from matrix(f"{name}.k_proj", 512, hidden)
    yield from matrix(f"{name}.v_proj", 512, hidden)
    yield from out(f"{name}.o_proj", hidden, 4096)
    yield from _plain(f"{name}.q_norm", 256)
    yield from _plain(f"{name}.k_norm", 256)


def _routing(name: str, experts: int, hidden: int) -> Iterator[Spec]:
    yield from _plain(f"{name}.gate", experts, hidden)
    yield from _plain(f"{name}.shared_expert_gate", 1, hidden)


def _mtp(experts: int, hidden: int, *, stacked: bool) -> Iterator[Spec]:
    """The drafter in BF16; ``stacked``: all experts in two tensors."""
    yield from _plain("mtp.fc", hidden, 2 * hidden)
    for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        yield from _plain(f"mtp.{name}", hidden)
    layer = "mtp.layers.0"
    yield from _norms(layer, hidden)
    yield from _attention(f"{layer}.self_attn", hidden, _plain, _plain)
    yield from _routing(f"{layer}.mlp", experts, hidden)
    yield from _mlp(f"{layer}.mlp.shared_expert", hidden, 512, _plain)
    if stacked:
        yield f"{layer}.mlp.experts.gate_up_proj", "BF16", (experts, 1024, hidden)
        yield f"{layer}.mlp.experts.down_proj", "BF16", (experts, hidden, 512)
        return
    for expert in range(experts):
        yield from _mlp(f"{layer}.mlp.experts.{expert}", hidden, 512, _plain)


def _qwen3_next() -> Iterator[Spec]:
    hidden = 2048
    yield from _plain("model.embed_tokens", 151936, hidden)
    for number in range(48):
        layer = f"model.layers.{number}"
        yield from _norms(layer, hidden)
        if number % 4 == 3:
            yield from _attention(f"{layer}.self_attn", hidden, _plain, _nvfp4)
            yield f"{layer}.self_attn.k_proj.k_scale", "F32", ()
            yield f"{layer}.self_attn.v_proj.v_scale", "F32", ()
        else:
            yield from _plain(f"{layer}.linear_attn.in_proj_qkvz", 12288, hidden)
            yield from _plain(f"{layer}.linear_attn.in_proj_ba", 64, hidden)
            yield from _nvfp4(f"{layer}.linear_attn.out_proj", hidden, 4096)
            yield from _gdn(f"{layer}.linear_attn")
        yield from _routing(f"{layer}.mlp", 512, hidden)
        yield from _mlp(f"{layer}.mlp.shared_expert", hidden, 512, _nvfp4)
        for expert in range(512):
            yield from _mlp(f"{layer}.mlp.experts.{expert}", hidden, 512, _nvfp4)
    yield from _plain("model.norm", hidden)
    yield from _plain("lm_head", 151936, hidden)
    yield from _mtp(512, hidden, stacked=False)


def _tower() -> Iterator[Spec]:
    """Qwen3.5's vision tower for a model of 2048."""

    def biased(name: str, *shape: int) -> Iterator[Spec]:
        yield f"{name}.weight", "BF16", shape
        yield f"{name}.bias", "BF16", shape[:1]

    top = "model.visual"
    yield from biased(f"{top}.patch_embed.proj", 1152, 3, 2, 16, 16)
    yield from _plain(f"{top}.pos_embed", 2304, 1152)
    for number in range(27):
        block = f"{top}.blocks.{number}"
        for norm in ("norm1", "norm2"):
            yield from biased(f"{block}.{norm}", 1152)
        yield from biased(f"{block}.attn.qkv", 3 * 1152, 1152)
        yield from biased(f"{block}.attn.proj", 1152, 1152)
        yield from biased(f"{block}.mlp.linear_fc1", 4304, 1152)
        yield from biased(f"{block}.mlp.linear_fc2", 1152, 4304)
    yield from biased(f"{top}.merger.norm", 1152)
    yield from biased(f"{top}.merger.linear_fc1", 4608, 4608)
    yield from biased(f"{top}.merger.linear_fc2", 2048, 4608)


def _qwen3_6() -> Iterator[Spec]:
    hidden = 2048
    yield from _plain("model.language_model.embed_tokens", 248320, hidden)
    for number in range(40):
        layer = f"model.language_model.layers.{number}"
        yield from _norms(layer, hidden)
        if number % 4 == 3:
            yield from _attention(f"{layer}.self_attn", hidden, _fp8, _fp8)
        else:
            yield from _fp8(f"{layer}.linear_attn.in_proj_qkv", 8192, hidden)
            yield from _fp8(f"{layer}.linear_attn.in_proj_z", 4096, hidden)
            yield from _plain(f"{layer}.linear_attn.in_proj_a", 32, hidden)
            yield from _plain(f"{layer}.linear_attn.in_proj_b", 32, hidden)
            yield from _fp8(f"{layer}.linear_attn.out_proj", hidden, 4096)
            yield from _gdn(f"{layer}.linear_attn")
        yield from _routing(f"{layer}.mlp", 256, hidden)
        yield from _mlp(f"{layer}.mlp.shared_expert", hidden, 512, _nvfp4)
        for expert in range(256):
            yield from _mlp(f"{layer}.mlp.experts.{expert}", hidden, 512, _nvfp4)
    yield from _plain("model.language_model.norm", hidden)
    yield from _nvfp4("lm_head", 248320, hidden)
    yield from _tower()
    yield from _mtp(256, hidden, stacked=True)


_HEADS = {
    "hidden_size": 2048,
    "head_dim": 256,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "max_position_embeddings": 262144,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}

_QWEN3_NEXT = {
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    **_HEADS,
    "num_hidden_layers": 48,
    "full_attention_interval": 4,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "intermediate_size": 5120,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "partial_rotary_factor": 0.25,
    "rope_theta": 10000000,
    "vocab_size": 151936,
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "group_size": 16,
        "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
        "config_groups": {
            "group_0": {"weights": _FOUR, "input_activations": _FOUR, "targets": ["Linear"]},
        },
        "ignore": [
            "lm_head",
            *(
                f"model.layers.{number}.linear_attn.{name}"
                for number in range(48)
                if number % 4 != 3
                for name in ("conv1d", "in_proj_ba", "in_proj_qkvz")
            ),
            *(
                f"model.layers.{number}.self_attn.{name}_proj"
                for number in range(3, 48, 4)
                for name in ("q", "k", "v")
            ),
            *(
                f"model.layers.{number}.mlp.{name}"
                for number in range(48)
                for name in ("gate", "shared_expert_gate")
            ),
            "mtp*",
        ],
    },
}


def _mixed() -> dict[str, dict[str, Any]]:
    """The 291 layers that the checkpoint lists: the experts of a layer are one."""
    found: dict[str, dict[str, Any]] = {"lm_head": {"quant_algo": "W4A16_NVFP4", "group_size": 16}}
    for number in range(40):
        layer = f"model.language_model.layers.{number}"
        attention = ("self_attn", "qkvo") if number % 4 == 3 else None
        eight = [f"self_attn.{name}_proj" for name in "qkvo"] if attention else []
        eight = eight or [f"linear_attn.{name}" for name in ("in_proj_qkv", "in_proj_z", "out_proj")]
        four = ["mlp.experts", *(f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down"))]
        found |= {f"{layer}.{name}": {"quant_algo": "FP8"} for name in eight}
        found |= {f"{layer}.{name}": {"quant_algo": "W4A16_NVFP4", "group_size": 16} for name in four}
    return found


_QWEN3_6 = {
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "model_type": "qwen3_5_moe",
    "tie_word_embeddings": False,
    "image_token_id": 248056,
    "video_token_id": 248057,
    "vision_start_token_id": 248053,
    "vision_end_token_id": 248054,
    "text_config": {
        "model_type": "qwen3_5_moe_text",
        **_HEADS,
        "dtype": "bfloat16",
        "num_hidden_layers": 40,
        "layer_types": _LINEAR * 10,
        "full_attention_interval": 4,
        "mtp_num_hidden_layers": 1,
        "mamba_ssm_dtype": "float32",
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "vocab_size": 248320,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
    },
    "vision_config": {
        "model_type": "qwen3_5_moe",
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 2048,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "deepstack_visual_indexes": [],
    },
    "quantization_config": {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "config_groups": {
            "group_0": {"weights": _EIGHT, "input_activations": _EIGHT, "targets": ["Linear"]},
            "group_1": {"weights": _FOUR, "targets": ["lm_head"]},
        },
        "quantized_layers": _mixed(),
        "ignore": ["mtp.layers.0*", "mtp*"],
    },
}

QWEN3_NEXT = "nvidia/Qwen3-Next-80B-A3B-Instruct-NVFP4"
QWEN3_6 = "nvidia/Qwen3.6-35B-A3B-NVFP4"

PUBLISHED = {
    QWEN3_NEXT: Published(_QWEN3_NEXT, tuple(_qwen3_next())),
    # Its wish for an FP8 cache stands in the side file alone.
    QWEN3_6: Published(
        _QWEN3_6,
        tuple(_qwen3_6()),
        {
            "producer": {"name": "modelopt"},
            "quantization": {
                "quant_algo": "MIXED_PRECISION",
                "kv_cache_quant_algo": "FP8",
                "quantized_layers": _mixed(),
            },
        },
    ),
}


def size(spec: Spec) -> int:
    """Bytes of a tensor."""
    return math.prod(spec[2]) * _BYTES[spec[1]]


def header(specs: list[Spec]) -> tuple[bytes, int]:
    """The first bytes of a safetensors file, and how long the whole file would be."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, kind, shape in specs:
        start, end = end, end + size((name, kind, shape))
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text, 8 + len(text) + end


def write(folder: Path, published: Published, shards: int = 3) -> Path:
    """The checkpoint's folder with an index and files that have a header and a hole."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(published.config))
    if published.side is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps(published.side))
    names: dict[str, str] = {}
    each = -(-len(published.tensors) // shards)
    for number in range(shards):
        specs = list(published.tensors[number * each : (number + 1) * each])
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        start, length = header(specs)
        with (folder / file).open("wb") as out:
            out.write(start)
            out.truncate(length)
        names |= {name: file for name, _, _ in specs}
    total = sum(map(size, published.tensors))
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
