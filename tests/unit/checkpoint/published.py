"""Configurations of published checkpoints in miniature: the sections that say what is quantised.

Each has the keys and the rules of a checkpoint that can be fetched (its name says which), with four layers
and small sizes. They were written for these tests; no file of those checkpoints is here.
"""

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

_FOUR: Json = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
_EIGHT: Json = {"dynamic": False, "num_bits": 8, "type": "float"}
_FP8_KV: Json = {"dynamic": False, "num_bits": 8, "type": "float"}
_PACKED: Json = {
    "num_bits": 4,
    "type": "float",
    "strategy": "tensor_group",
    "group_size": 16,
    "symmetric": True,
    "dynamic": False,
}
_LOCAL: Json = {**_PACKED, "dynamic": "local"}
_CHANNEL: Json = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
_TOKEN: Json = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
_KV_TENSOR: Json = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}


@dataclass(frozen=True)
class Published:
    """A configuration: ``config.json``, ``hf_quant_config.json`` where there is one, and facts known of it.

    ``facts`` are (module, weight, activation); ``kv_cache`` is vLLM's word.
    """

    config: Json
    side: Json | None = None
    kv_cache: str = "auto"
    facts: tuple[tuple[str, str, str], ...] = ()


def _modelopt(algorithm: str, **more: Any) -> Json:
    return {"quant_method": "modelopt", "quant_algo": algorithm, **more}


def _w4a4(*targets: str) -> Json:
    return {"group_0": {"weights": _FOUR, "input_activations": _FOUR, "targets": list(targets)}}


def _layers(**recipes: str) -> Json:
    """ModelOpt's list of layers: a pattern with {} for the layer (dots as __) -> algorithm."""
    found: Json = {}
    for pattern, algorithm in recipes.items():
        name = pattern.replace("__", ".")
        for layer in range(4) if "LAYER" in name else (0,):
            more = {"group_size": 16} if "NVFP4" in algorithm else {}
            found[name.replace("LAYER", str(layer))] = {"quant_algo": algorithm, **more}
    return found


def _compressed(groups: Json, **more: Any) -> Json:
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": "nvfp4-pack-quantized",
        "config_groups": groups,
        "ignore": ["lm_head"],
        **more,
    }


def _group(weights: Json, inputs: Json | None, form: str, *targets: str) -> Json:
    return {"weights": weights, "input_activations": inputs, "targets": list(targets), "format": form}


_SIZES: Json = {
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
_GDN: Json = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
}
_EXPERTS: Json = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
}


def _plain(architecture: str, model_type: str, **more: Any) -> Json:
    return {"architectures": [architecture], "model_type": model_type, **_SIZES, **more}


def _qwen3_5(*, experts: bool, **more: Any) -> Json:
    kind = "qwen3_5_moe" if experts else "qwen3_5"
    name = "Qwen3_5MoeForConditionalGeneration" if experts else "Qwen3_5ForConditionalGeneration"
    text = {"model_type": f"{kind}_text", **_SIZES, **_GDN, **(_EXPERTS if experts else {})}
    text["layer_types"] = ["linear_attention"] * 3 + ["full_attention"]
    return {
        "architectures": [name],
        "model_type": kind,
        "tie_word_embeddings": False,
        "text_config": text,
        **more,
    }


_QWEN3_5_MIXED = _layers(
    model__language_model__layers__LAYER__mlp__experts="W4A16_NVFP4",
    model__language_model__layers__LAYER__mlp__shared_expert__gate_proj="W4A16_NVFP4",
    model__language_model__layers__LAYER__mlp__shared_expert__up_proj="W4A16_NVFP4",
    model__language_model__layers__LAYER__mlp__shared_expert__down_proj="W4A16_NVFP4",
    model__language_model__layers__LAYER__linear_attn__in_proj_qkv="FP8",
    model__language_model__layers__LAYER__linear_attn__in_proj_z="FP8",
    model__language_model__layers__LAYER__linear_attn__out_proj="FP8",
    model__language_model__layers__LAYER__self_attn__q_proj="FP8",
    model__language_model__layers__LAYER__self_attn__k_proj="FP8",
    model__language_model__layers__LAYER__self_attn__v_proj="FP8",
    lm_head="W4A16_NVFP4",
)
_QWEN3_5_DENSE = _layers(
    model__language_model__layers__LAYER__mlp__gate_proj="NVFP4",
    model__language_model__layers__LAYER__mlp__up_proj="NVFP4",
    model__language_model__layers__LAYER__mlp__down_proj="NVFP4",
    model__language_model__layers__LAYER__self_attn__o_proj="FP8",
    lm_head="NVFP4",
)
_STEM = "model.language_model.layers"

PUBLISHED: dict[str, Published] = {
    "nvidia/Qwen3-Next-80B-A3B-Instruct-NVFP4": Published(
        _plain(
            "Qwen3NextForCausalLM",
            "qwen3_next",
            full_attention_interval=4,
            **_GDN,
            **_EXPERTS,
            quantization_config=_modelopt(
                "NVFP4",
                config_groups=_w4a4("Linear"),
                ignore=[
                    "lm_head",
                    *(f"model.layers.{n}.linear_attn.in_proj_qkvz" for n in range(3)),
                    *(f"model.layers.{n}.mlp.gate" for n in range(4)),
                    "model.layers.3.self_attn.q_proj",
                    "model.layers.3.self_attn.k_proj",
                    "model.layers.3.self_attn.v_proj",
                    "mtp.layers.0*",
                ],
            ),
        ),
        facts=(
            ("model.layers.0.linear_attn.in_proj_qkvz", "", ""),
            ("model.layers.0.linear_attn.out_proj", "nvfp4", "nvfp4"),
            ("model.layers.3.self_attn.q_proj", "", ""),
            ("model.layers.3.self_attn.o_proj", "nvfp4", "nvfp4"),
            ("model.layers.0.mlp.experts", "nvfp4", "nvfp4"),
            ("lm_head", "", ""),
        ),
    ),
    "nvidia/Qwen3.6-35B-A3B-NVFP4": Published(
        _qwen3_5(
            experts=True,
            quantization_config=_modelopt(
                "MIXED_PRECISION",
                quantized_layers=_QWEN3_5_MIXED,
                config_groups={
                    "group_0": {"weights": _EIGHT, "input_activations": _EIGHT, "targets": ["Linear"]},
                    "group_1": _w4a4("lm_head")["group_0"],
                },
                kv_cache_scheme=_FP8_KV,
                ignore=["mtp.layers.0*", "mtp*"],
            ),
        ),
        kv_cache="fp8_e4m3",
        facts=(
            (f"{_STEM}.0.mlp.experts", "nvfp4", ""),
            (f"{_STEM}.0.linear_attn.in_proj_qkv", "fp8", "fp8"),
            (f"{_STEM}.3.self_attn.q_proj", "fp8", "fp8"),
            (f"{_STEM}.3.self_attn.o_proj", "", ""),
            ("lm_head", "nvfp4", ""),
        ),
    ),
    "nvidia/Qwen3.8-27B-NVFP4": Published(
        _qwen3_5(
            experts=False,
            quantization_config=_modelopt(
                "MIXED_PRECISION", quantized_layers=_QWEN3_5_DENSE, ignore=["mtp*"]
            ),
        ),
        facts=(
            (f"{_STEM}.0.mlp.gate_proj", "nvfp4", "nvfp4"),
            (f"{_STEM}.3.self_attn.o_proj", "fp8", "fp8"),
            (f"{_STEM}.3.self_attn.q_proj", "", ""),
            ("lm_head", "nvfp4", "nvfp4"),
        ),
    ),
    "nvidia/Qwen3.5-122B-A10B-NVFP4": Published(
        _qwen3_5(
            experts=True,
            quantization_config=_modelopt(
                "NVFP4",
                config_groups=_w4a4("Linear"),
                kv_cache_scheme=_FP8_KV,
                ignore=[
                    "lm_head",
                    *(f"{_STEM}.{n}.linear_attn*" for n in range(3)),
                    *(f"{_STEM}.{n}.mlp.shared_expert*" for n in range(4)),
                    f"{_STEM}.3.self_attn*",
                    "model.visual*",
                    "mtp*",
                ],
            ),
        ),
        kv_cache="fp8_e4m3",
        facts=(
            (f"{_STEM}.0.mlp.experts", "nvfp4", "nvfp4"),
            (f"{_STEM}.0.mlp.shared_expert.up_proj", "", ""),
            (f"{_STEM}.0.linear_attn.out_proj", "", ""),
            (f"{_STEM}.3.self_attn.o_proj", "", ""),
            ("lm_head", "", ""),
        ),
    ),
    "nvidia/Qwen3-235B-A22B-NVFP4": Published(
        _plain("Qwen3MoeForCausalLM", "qwen3_moe", **_EXPERTS),
        side={
            "producer": {"name": "modelopt", "version": "0.33.0"},
            "quantization": {
                "quant_algo": "NVFP4",
                "kv_cache_quant_algo": "FP8",
                "group_size": 16,
                "exclude_modules": ["lm_head", *(f"model.layers.{n}.mlp.gate" for n in range(4))],
            },
        },
        kv_cache="fp8_e4m3",
        facts=(
            ("model.layers.0.self_attn.q_proj", "nvfp4", "nvfp4"),
            ("model.layers.0.mlp.experts", "nvfp4", "nvfp4"),
            ("lm_head", "", ""),
        ),
    ),
    "nvidia/GLM-5.1-NVFP4": Published(
        _plain(
            "GlmMoeDsaForCausalLM",
            "glm_moe_dsa",
            n_routed_experts=8,
            n_shared_experts=1,
            first_k_dense_replace=1,
            kv_lora_rank=64,
            q_lora_rank=64,
            qk_rope_head_dim=16,
            qk_nope_head_dim=32,
            index_topk=64,
            quantization_config=_modelopt(
                "NVFP4",
                config_groups=_w4a4("Linear"),
                kv_cache_scheme=_FP8_KV,
                ignore=["lm_head", "model.layers.0*", *(f"model.layers.{n}.self_attn*" for n in range(4))],
            ),
        ),
        kv_cache="fp8_e4m3",
        facts=(
            ("model.layers.0.mlp.up_proj", "", ""),
            ("model.layers.1.self_attn.o_proj", "", ""),
            ("model.layers.1.mlp.experts", "nvfp4", "nvfp4"),
            ("model.layers.1.mlp.shared_experts.up_proj", "nvfp4", "nvfp4"),
        ),
    ),
    "nvidia/Llama-3.3-70B-Instruct-NVFP4": Published(
        _plain(
            "LlamaForCausalLM",
            "llama",
            quantization_config=_modelopt(
                "NVFP4", config_groups=_w4a4("Linear"), kv_cache_scheme=_FP8_KV, ignore=["lm_head"]
            ),
        ),
        kv_cache="fp8_e4m3",
        facts=(("model.layers.3.mlp.down_proj", "nvfp4", "nvfp4"), ("lm_head", "", "")),
    ),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4": Published(
        _plain(
            "NemotronHForCausalLM",
            "nemotron_h",
            hybrid_override_pattern="ME*E",
            n_routed_experts=8,
            n_shared_experts=1,
            num_experts_per_tok=2,
            moe_intermediate_size=64,
            moe_shared_expert_intermediate_size=64,
            mamba_num_heads=4,
            mamba_head_dim=32,
            ssm_state_size=16,
            n_groups=1,
            conv_kernel=4,
            quantization_config=_modelopt(
                "NVFP4",
                config_groups=_w4a4("Linear"),
                kv_cache_scheme=_FP8_KV,
                ignore=[
                    "lm_head",
                    "backbone.layers.0.mixer.conv1d",
                    *(f"backbone.layers.2.mixer.{part}_proj" for part in "qkvo"),
                ],
            ),
        ),
        kv_cache="fp8_e4m3",
        facts=(
            ("backbone.layers.0.mixer.in_proj", "nvfp4", "nvfp4"),
            ("backbone.layers.1.mixer.experts", "nvfp4", "nvfp4"),
            ("backbone.layers.2.mixer.q_proj", "", ""),
            ("lm_head", "", ""),
        ),
    ),
    "nvidia/DeepSeek-V4-Flash-NVFP4": Published(
        _plain(
            "DeepseekV4ForCausalLM",
            "deepseek_v4",
            n_routed_experts=8,
            n_shared_experts=1,
            num_experts_per_tok=2,
            moe_intermediate_size=64,
            expert_dtype="fp4",
            q_lora_rank=64,
            o_lora_rank=64,
            qk_rope_head_dim=16,
            index_topk=64,
            compress_ratios=[0, 0, 4, 0],
            quantization_config={
                "quant_method": "fp8",
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "scale_fmt": "ue8m0",
                "weight_block_size": [128, 128],
                "moe_quant_algo": "NVFP4",
            },
        ),
        facts=(("model.layers.1.mlp.experts", "nvfp4", "nvfp4"), ("lm_head", "", "")),
    ),
    "RedHatAI/Llama-3.1-8B-Instruct-NVFP4": Published(
        _plain(
            "LlamaForCausalLM",
            "llama",
            quantization_config=_compressed(
                {"group_0": _group(_PACKED, _LOCAL, "nvfp4-pack-quantized", "Linear")}
            ),
        ),
        facts=(("model.layers.0.self_attn.q_proj", "nvfp4", "nvfp4"), ("lm_head", "", "")),
    ),
    "RedHatAI/Qwen3-30B-A3B-NVFP4A16": Published(
        _plain(
            "Qwen3MoeForCausalLM",
            "qwen3_moe",
            **_EXPERTS,
            quantization_config=_compressed(
                {"group_0": _group(_PACKED, None, "nvfp4-pack-quantized", "Linear")},
                ignore=["lm_head", "re:.*mlp.gate$"],
            ),
        ),
        facts=(
            ("model.layers.0.self_attn.o_proj", "nvfp4", ""),
            ("model.layers.0.mlp.experts", "nvfp4", ""),
            ("lm_head", "", ""),
        ),
    ),
    "RedHatAI/Qwen3.5-122B-A10B-NVFP4-FP8": Published(
        _qwen3_5(
            experts=True,
            quantization_config=_compressed(
                {
                    "group_0": _group(
                        _CHANNEL, _TOKEN, "float-quantized", "re:.*self_attn.*", "re:.*linear_attn.*"
                    ),
                    "group_1": _group(_PACKED, _LOCAL, "nvfp4-pack-quantized", "re:.*mlp.experts.*"),
                },
                format="mixed-precision",
                ignore=["lm_head", "re:.*mlp.gate$", "re:.*visual.*", "re:^mtp.*"],
                kv_cache_scheme=_KV_TENSOR,
            ),
        ),
        kv_cache="fp8",
        facts=(
            (f"{_STEM}.0.mlp.experts", "nvfp4", "nvfp4"),
            (f"{_STEM}.3.self_attn.q_proj", "fp8_channel", "fp8"),
            (f"{_STEM}.0.mlp.shared_expert.up_proj", "", ""),
            ("lm_head", "", ""),
        ),
    ),
    "openai/gpt-oss-20b": Published(
        _plain(
            "GptOssForCausalLM",
            "gpt_oss",
            num_local_experts=8,
            num_experts_per_tok=2,
            quantization_config={
                "quant_method": "mxfp4",
                "modules_to_not_convert": [
                    "model.layers.*.self_attn",
                    "model.layers.*.mlp.router",
                    "lm_head",
                ],
            },
        ),
        facts=(
            ("model.layers.0.self_attn.q_proj", "", ""),
            ("model.layers.0.mlp.experts", "mxfp4", ""),
            ("lm_head", "", ""),
        ),
    ),
    "Qwen/Qwen3-30B-A3B-Instruct-2507-FP8": Published(
        _plain(
            "Qwen3MoeForCausalLM",
            "qwen3_moe",
            **_EXPERTS,
            quantization_config={
                "quant_method": "fp8",
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "weight_block_size": [128, 128],
                "modules_to_not_convert": ["lm_head", *(f"model.layers.{n}.mlp.gate" for n in range(4))],
            },
        ),
        facts=(
            ("model.layers.0.self_attn.q_proj", "fp8_block", "fp8"),
            ("model.layers.0.mlp.experts", "fp8_block", "fp8"),
            ("lm_head", "", ""),
        ),
    ),
    "RedHatAI/gemma-3-12b-it-FP8-dynamic": Published(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": {"model_type": "gemma3_text", **_SIZES},
            "quantization_config": _compressed(
                {"group_0": _group(_CHANNEL, _TOKEN, "float-quantized", "Linear")},
                format="float-quantized",
                ignore=["re:.*lm_head", "re:vision_tower.*", "re:multi_modal_projector.*"],
            ),
        },
        facts=((f"{_STEM}.0.mlp.gate_proj", "fp8_channel", "fp8"), ("lm_head", "", "")),
    ),
    "amd/Llama-3.1-8B-Instruct-FP8 (Quark)": Published(
        _plain(
            "LlamaForCausalLM",
            "llama",
            quantization_config={
                "quant_method": "quark",
                "export": {"kv_cache_group": [], "pack_method": "reorder"},
                "global_quant_config": {
                    "weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False},
                    "input_tensors": {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False},
                    "output_tensors": None,
                    "bias": None,
                },
                "layer_quant_config": {},
                "layer_type_quant_config": {},
                "exclude": ["lm_head"],
            },
        ),
        facts=(("model.layers.0.mlp.down_proj", "fp8", "fp8"), ("lm_head", "", "")),
    ),
}
