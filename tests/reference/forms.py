"""One model in several forms of checkpoint: the same numbers, named, arranged or described in another way.

All begin with ModelOpt's NVFP4 checkpoint of a Qwen3, Qwen3-MoE or Qwen3-Next model.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gb10.nvfp4 import quantize

FP8_MAX = 448.0
FP8_INPUT_AMAX = 64.0
"""What the inputs of FP8 layers are taken to reach. FP8 has exponents: a large one costs little."""

_GROUP = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
_TOKENIZER_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Form:
    """What a checkpoint says: its tensors by name, config.json and hf_quant_config.json."""

    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]
    side_file: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path) -> "Form":
        """Read a folder with one file of weights."""
        side = folder / "hf_quant_config.json"
        return cls(
            load_file(folder / "model.safetensors"),
            json.loads((folder / "config.json").read_text(encoding="utf-8")),
            json.loads(side.read_text(encoding="utf-8")) if side.exists() else None,
        )

    def write(self, folder: Path, tokenizer_from: Path) -> Path:
        """Write the new folder, with the tokenizer of another one. Returns it."""
        folder.mkdir(parents=True)
        for name in _TOKENIZER_FILES:
            shutil.copyfile(tokenizer_from / name, folder / name)
        (folder / "config.json").write_text(json.dumps(self.config), encoding="utf-8")
        if self.side_file is not None:
            (folder / "hf_quant_config.json").write_text(json.dumps(self.side_file), encoding="utf-8")
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    def quantized(self) -> list[str]:
        """Name the modules that are stored as NVFP4."""
        return [
            name.removesuffix(".weight_scale_2") for name in self.tensors if name.endswith(".weight_scale_2")
        ]

    def unquantized(self) -> list[str]:
        """Name the linear modules that are not."""
        known = set(self.quantized())
        modules = (
            name.removesuffix(".weight")
            for name, tensor in self.tensors.items()
            if name.endswith(".weight") and tensor.ndim == 2 and "embed" not in name
        )
        return [module for module in modules if module not in known]

    def without(self, *suffixes: str) -> "Form":
        """Leave out the tensors with these endings."""
        return replace(
            self,
            tensors={name: tensor for name, tensor in self.tensors.items() if not name.endswith(suffixes)},
        )

    def _with_section(self, section: dict[str, Any]) -> "Form":
        return replace(self, config=self.config | {"quantization_config": section}, side_file=None)


def with_exact_reciprocals(form: Form) -> Form:
    """Move each global scale by a bit or two, until 1 / (1 / scale) is that scale in float32.

    compressed-tensors stores the reciprocals. With such scales both forms have the same numbers.
    """
    tensors = dict(form.tensors)
    for name, scale in tensors.items():
        if name.endswith((".weight_scale_2", ".input_scale")):
            while not torch.equal(again := scale.reciprocal().reciprocal(), scale):
                scale = again
            tensors[name] = scale
    return replace(form, tensors=tensors)


def weight_only(form: Form) -> Form:
    """ModelOpt's W4A16_NVFP4: no input scales."""
    section = form.config["quantization_config"] | {
        "quant_algo": "W4A16_NVFP4",
        "config_groups": {
            name: group | {"input_activations": None}
            for name, group in form.config["quantization_config"]["config_groups"].items()
        },
    }
    return form.without(".input_scale")._with_section(section)


def compressed_tensors(form: Form, *, weight_only: bool = False) -> Form:
    """llm-compressor's form, NVFP4 or NVFP4A16: other names, and the reciprocals of the global scales."""
    tensors = dict(form.tensors)
    for module in form.quantized():
        tensors[f"{module}.weight_packed"] = tensors.pop(f"{module}.weight")
        for theirs, ours in (
            ("weight_global_scale", "weight_scale_2"),
            ("input_global_scale", "input_scale"),
        ):
            tensors[f"{module}.{theirs}"] = tensors.pop(f"{module}.{ours}").reciprocal().reshape(1)
    group = {
        "targets": ["Linear"],
        "weights": _GROUP | {"dynamic": False},
        "input_activations": None if weight_only else _GROUP | {"dynamic": "local"},
        "format": "nvfp4-pack-quantized",
    }
    section = {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": "nvfp4-pack-quantized",
        "ignore": [*_not_mtp(form.unquantized()), "re:mtp.*"],
        "config_groups": {"group_0": group},
    }
    made = replace(form, tensors=tensors)._with_section(section)
    return made.without(".input_global_scale") if weight_only else made


def mixed(form: Form, formats: Mapping[str, str]) -> Form:
    """ModelOpt's MIXED_PRECISION. `formats` gives modules another one than they have: FP8 or W4A16_NVFP4."""
    tensors = dict(form.tensors)
    for module, algorithm in formats.items():
        name = f"{module}.weight"
        if algorithm == "FP8":
            weight = tensors[name].to(torch.float32)
            scale = weight.abs().amax() / FP8_MAX
            tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale"] = scale
            tensors[f"{module}.input_scale"] = torch.tensor(FP8_INPUT_AMAX / FP8_MAX)
        else:
            assert algorithm == "W4A16_NVFP4"
            if f"{name}_scale_2" not in tensors:
                stored = quantize(tensors[name].to(torch.float32))
                tensors[name], tensors[f"{name}_scale"], tensors[f"{name}_scale_2"] = stored
            tensors.pop(f"{module}.input_scale", None)
    layers = dict.fromkeys(form.quantized(), "NVFP4") | dict(formats)
    section = {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {
            module: {"quant_algo": algorithm} | ({} if algorithm == "FP8" else {"group_size": 16})
            for module, algorithm in layers.items()
        },
        "ignore": ["mtp*"],
    }
    return replace(form, tensors=tensors)._with_section(section)


def side_file_only(form: Form) -> Form:
    """The words of config.json's section in hf_quant_config.json instead, where ModelOpt 0.29 put them."""
    config = dict(form.config)
    section = config.pop("quantization_config")
    said = {
        "quant_algo": section["quant_algo"],
        "kv_cache_quant_algo": None,
        "group_size": 16,
        "exclude_modules": section["ignore"],
    }
    if "quantized_layers" in section:
        said["quantized_layers"] = section["quantized_layers"]
    return replace(form, config=config, side_file={"producer": {"name": "modelopt"}, "quantization": said})


def with_fused_experts(form: Form) -> Form:
    """Unquantised Qwen3.5-MoE as it is published: the experts of a layer in two tensors."""
    tensors = dict(form.tensors)
    first = [name for name in tensors if name.endswith(".experts.0.down_proj.weight")]
    for place in (name.removesuffix("0.down_proj.weight") for name in first):
        each = [
            [tensors.pop(f"{place}{number}.{part}_proj.weight") for part in ("gate", "up", "down")]
            for number in range(form.config["text_config"]["num_experts"])
        ]
        tensors[f"{place}gate_up_proj"] = torch.stack([torch.cat((gate, up)) for gate, up, _ in each])
        tensors[f"{place}down_proj"] = torch.stack([down for _, _, down in each])
    return replace(form, tensors=tensors)


def with_wider_experts(form: Form) -> Form:
    """Routed experts of twice the intermediate size that compute the same, for more ranks to share.

    Behind every 16 values, which are a block, come 16 that are zero: each rank has some of both.
    """
    tensors = dict(form.tensors)
    for name, tensor in tensors.items():
        found = re.search(r"\.experts\.\d+\.(gate|up|down)_proj\.(weight|weight_scale)$", name)
        if found is None:
            continue
        bits = tensor if tensor.dtype.itemsize > 1 else tensor.view(torch.uint8)
        rows, columns = bits.shape
        if found[1] != "down":
            pieces = bits.view(rows // 16, 1, 16, columns)
            shape = 2 * rows, columns
        else:
            packed = tensor.dtype == torch.uint8
            size = 1 if found[2] == "weight_scale" else 8 if packed else 16
            pieces = bits.view(rows, columns // size, 1, size)
            shape = rows, 2 * columns
        wide = torch.cat((pieces, torch.zeros_like(pieces)), dim=1 if found[1] != "down" else 2)
        tensors[name] = wide.reshape(shape).view(tensor.dtype)
    size = form.config["moe_intermediate_size"]
    return replace(form, tensors=tensors, config=form.config | {"moe_intermediate_size": 2 * size})


def tied(form: Form) -> Form:
    """A model whose output head is its embedding."""
    return replace(form.without("lm_head.weight"), config=form.config | {"tie_word_embeddings": True})


def qwen3_5_moe(form: Form) -> Form:
    """Qwen3.5-MoE (also 3.6 and 3.8) out of Qwen3-Next: the same arithmetic, for text.

    The input projections of the gated delta net are kept apart, and each in one piece; the language model is
    a part beside one that sees, whose weights are random.
    """
    config = form.config
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in form.tensors.items():
        module, _, part = name.rpartition(".")
        pieces = _arranged(module, tensor, config)
        tensors |= {f"{new}.{part}": rows for new, rows in zip(_qwen3_5_names(module), pieces, strict=True)}
    vision = QWEN3_5_VISION | {"out_hidden_size": config["hidden_size"]}
    tensors |= _random_vision(vision, form.tensors["model.norm.weight"].dtype)
    text = {
        key: config[key]
        for key in (
            "dtype", "hidden_size", "num_hidden_layers", "head_dim", "num_attention_heads",
            "num_key_value_heads", "num_experts", "num_experts_per_tok", "moe_intermediate_size",
            "shared_expert_intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps",
            "hidden_act", "layer_types",
            "linear_conv_kernel_dim", "linear_key_head_dim", "linear_num_key_heads", "linear_num_value_heads",
            "linear_value_head_dim", "tie_word_embeddings", "bos_token_id", "eos_token_id",
        )
    }  # fmt: skip
    rotary = config["partial_rotary_factor"]
    pairs = int(config["head_dim"] * rotary) // 2
    whole = {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "tie_word_embeddings": config["tie_word_embeddings"],
        # Ids that the tokenizer gives to text; no image comes.
        **{
            f"{kind}_token_id": config["vocab_size"] - 1 - number for number, kind in enumerate(_IMAGE_TOKENS)
        },
        "text_config": text
        | {
            "model_type": "qwen3_5_moe_text",
            "mtp_num_hidden_layers": 1,
            "full_attention_interval": config["full_attention_interval"],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": config["rope_theta"],
                "partial_rotary_factor": rotary,
                # Time, height and width: of text all three are the position.
                "mrope_section": [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3],
                "mrope_interleaved": True,
            },
        },
        "vision_config": vision,
    }
    made = Form(tensors, whole)
    section = config.get("quantization_config")
    return made if section is None else made._with_section(_renamed(section, made))


QWEN3_5_VISION: dict[str, Any] = {
    "model_type": "qwen3_5_moe_vision",
    "depth": 1,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_heads": 2,
    "num_position_embeddings": 64,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
"""The smallest part that sees."""

_IMAGE_TOKENS = ("image", "video", "vision_start", "vision_end")


def _random_vision(config: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """They must load, and no text asks them."""
    from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import Qwen3_5MoeVisionConfig
    from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeVisionModel

    torch.manual_seed(0)
    tower = Qwen3_5MoeVisionModel(Qwen3_5MoeVisionConfig(**config)).to(dtype)
    return {f"model.visual.{name}": tensor for name, tensor in tower.state_dict().items()}


def _qwen3_5_names(module: str) -> list[str]:
    """What a module of Qwen3-Next is called in Qwen3.5: one name, or those of its parts."""
    if module.startswith("model."):
        module = f"model.language_model.{module.removeprefix('model.')}"
    parent, _, name = module.rpartition(".")
    return [f"{parent}.{part}" for part in _PARTS[name]] if name in _PARTS else [module]


_PARTS = {"in_proj_qkvz": ("in_proj_qkv", "in_proj_z"), "in_proj_ba": ("in_proj_b", "in_proj_a")}


def _arranged(module: str, tensor: torch.Tensor, config: dict[str, Any]) -> list[torch.Tensor]:
    """Sort the rows of an input projection into those parts: Qwen3-Next groups them by key head.

    A scale of the whole weight is that of all parts.
    """
    parts = len(_PARTS.get(module.rpartition(".")[2], ("",)))
    if parts == 1 or tensor.ndim == 0:
        return [tensor.clone() for _ in range(parts)]
    heads = config["linear_num_key_heads"]
    group = config["linear_num_value_heads"] // heads
    key, value = config["linear_key_head_dim"], config["linear_value_head_dim"]
    is_qkvz = module.endswith("qkvz")
    sizes = (key, key, group * value, group * value) if is_qkvz else (group, group)
    by_head = tensor.view(heads, sum(sizes), -1)
    *first, last = (
        part.reshape(heads * size, -1) for part, size in zip(by_head.split(sizes, 1), sizes, strict=True)
    )
    return [torch.cat(first), last]


def _renamed(section: dict[str, Any], made: Form) -> dict[str, Any]:
    """The words of ModelOpt's section about the new form's modules."""
    new = {key: value for key, value in section.items() if key != "exclude_modules"}
    new["ignore"] = [*_not_mtp(made.unquantized()), "mtp*"]
    if "quantized_layers" in section:
        new["quantized_layers"] = {
            name: info
            for module, info in section["quantized_layers"].items()
            for name in _qwen3_5_names(module)
        }
        new["ignore"] = ["mtp*", "model.visual*"]
    return new


def _not_mtp(modules: list[str]) -> list[str]:
    return [module for module in modules if not module.startswith("mtp.")]
