"""ModelOpt's checkpoint format: which modules stay BF16, and the two configuration sections that say so."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from gb10.nvfp4 import BLOCK_SIZE

AS_SHIPPED = (
    "lm_head",
    "model.layers.*.linear_attn.in_proj_qkvz",
    "model.layers.*.linear_attn.in_proj_ba",
    "model.layers.*.linear_attn.conv1d",
    "model.layers.*.self_attn.q_proj",
    "model.layers.*.self_attn.k_proj",
    "model.layers.*.self_attn.v_proj",
    "model.layers.*.self_attn.qkv_proj",
    "model.layers.*.mlp.gate",
    "model.layers.*.mlp.shared_expert_gate",
    "mtp.*",
)
"""Module patterns that stay BF16 in NVIDIA's NVFP4 checkpoint of Qwen3-Next-80B-A3B.

What is left is NVFP4: the experts, the shared expert, and the output projections of both kinds of attention.
"""

DENSE = (
    "model.layers.*.linear_attn.in_proj_qkvz",
    "model.layers.*.linear_attn.in_proj_ba",
    "model.layers.*.self_attn.q_proj",
    "model.layers.*.self_attn.k_proj",
    "model.layers.*.self_attn.v_proj",
    "model.layers.*.self_attn.qkv_proj",
)
"""The dense side of ``AS_SHIPPED``: the input projections of both kinds of attention."""

HEAD = ("lm_head",)

_PRODUCER = {"name": "gb10.testbed", "version": "0.1.0"}
_SIDE_PRODUCER = {"name": "modelopt", "version": "0.1.0+gb10.testbed"}
"""vLLM reads a side file alone only under ModelOpt's name (_normalize_quantization_config)."""


def is_excluded(module: str, patterns: Sequence[str]) -> bool:
    """Say whether a module stays BF16. A `*` in a pattern stands for any text, dots too."""
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def config_section(exclude: Sequence[str]) -> dict[str, Any]:
    """Give `quantization_config` of `config.json`."""
    operand = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": BLOCK_SIZE}
    return {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "group_size": BLOCK_SIZE,
        "config_groups": {
            "group_0": {"input_activations": operand, "weights": operand, "targets": ["Linear"]}
        },
        "ignore": list(exclude),
        "exclude_modules": list(exclude),
        "producer": _PRODUCER,
    }


def side_file(exclude: Sequence[str]) -> dict[str, Any]:
    """Give the content of `hf_quant_config.json`, the file that ModelOpt itself writes."""
    return {
        "producer": _SIDE_PRODUCER,
        "quantization": {
            "quant_algo": "NVFP4",
            "kv_cache_quant_algo": None,
            "group_size": BLOCK_SIZE,
            "exclude_modules": list(exclude),
        },
    }
