"""The magnitudes of seeded weights, and the bytes that a token reads of them."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from gb10.nvfp4 import dequantize
from gb10_lab.engine_bench.resident import component_of, components, state_bytes
from gb10_lab.engine_bench.weights import fill


def _layer(rows: int, columns: int) -> dict[str, torch.Tensor]:
    return {
        "weight": torch.zeros(rows, columns // 2, dtype=torch.uint8),
        "weight_scale": torch.zeros(rows, columns // 16, dtype=torch.float8_e4m3fn),
        "weight_scale_2": torch.zeros(1),
        "input_scale": torch.zeros(1),
    }


@pytest.mark.parametrize("columns", [256, 2048])
def test_packed_weights_keep_activations_at_one(columns: int) -> None:
    layer = _layer(512, columns)
    for name, tensor in layer.items():
        fill(f"model.layers.0.mlp.up_proj.{name}", tensor, layer, False)
    exact = dequantize(layer["weight"], layer["weight_scale"], layer["weight_scale_2"])
    assert abs(exact.float().std() * math.sqrt(columns) - 1) < 0.02
    assert abs(exact.float().mean() * math.sqrt(columns)) < 0.02


def test_values_follow_from_the_name() -> None:
    def made(name: str) -> torch.Tensor:
        tensor = torch.zeros(64, 64)
        fill(name, tensor, {}, False)
        return tensor

    assert torch.equal(made("model.layers.0.mlp.gate.weight"), made("model.layers.0.mlp.gate.weight"))
    assert not torch.equal(made("model.layers.0.mlp.gate.weight"), made("model.layers.1.mlp.gate.weight"))


def test_norms_are_near_one_where_the_layer_adds_none() -> None:
    plain, centred = torch.zeros(512), torch.zeros(512)
    fill("model.norm.weight", plain, {}, False)
    fill("model.norm.weight", centred, {}, True)
    assert abs(plain.mean() - 1) < 0.02
    assert abs(centred.mean()) < 0.02


def test_gates_of_gdn_decay() -> None:
    decay = torch.zeros(64)
    fill("model.layers.0.linear_attn.A_log", decay, {}, False)
    assert decay.min() >= 0 and decay.max() <= math.log(16)


def test_a_global_scale_needs_its_weight() -> None:
    with pytest.raises(ValueError, match="no weight beside w2_weight_scale_2"):
        fill("experts.w2_weight_scale_2", torch.zeros(4), {}, False)


@dataclass
class _Own:
    codes: torch.Tensor
    scales: torch.Tensor


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(100, 8, dtype=torch.bfloat16)
        self.lm_head = torch.nn.Linear(8, 100, bias=False, dtype=torch.bfloat16)
        self.mlp = torch.nn.Module()
        self.mlp.experts = torch.nn.Module()
        self.mlp.experts.register_buffer("w13", torch.zeros(16, 4, 4, dtype=torch.uint8))
        self.mlp.in_proj_ba = torch.nn.Module()
        own = _Own(torch.zeros(32, dtype=torch.uint8), torch.zeros(2))
        self.mlp.in_proj_ba.__dict__["own"] = own  # as a plain attribute of an untyped module
        self.kv_cache = [torch.zeros(1000)]
        self.again = self.lm_head.weight.data


def test_bytes_that_a_token_reads() -> None:
    config = SimpleNamespace(num_experts=16, num_experts_per_tok=4, vocab_size=100)
    parts = {part.name: part for part in components(_Model(), config, "cpu")}
    assert {name: (part.loaded, part.read) for name, part in parts.items()} == {
        "embedding": (1600, 16),
        "lm_head": (1600, 1600),
        "routed experts": (256, 64),
        "GDN in_proj_ba": (32 + 8, 32 + 8),
    }
    assert parts["GDN in_proj_ba"].dtypes == {"uint8": 32, "float32": 8}


def test_names_of_parts() -> None:
    layer = "model.layers.3"
    expected = {
        f"{layer}.mlp.experts.routed_experts.w13_weight": "routed experts",
        f"{layer}.mlp.experts.runner.gate.weight": "router",
        f"{layer}.mlp.shared_expert_gate.weight": "shared expert gate",
        f"{layer}.mlp.shared_expert.gate_up_proj.weight": "shared expert",
        f"{layer}.linear_attn.in_proj_qkvz.weight": "GDN in_proj_qkvz",
        f"{layer}.linear_attn.out_proj.weight_scale": "GDN out_proj",
        f"{layer}.self_attn.o_proj.weight": "attention o_proj",
        f"{layer}.post_attention_layernorm.weight": "norms",
        "lm_head.gb10_dense.held.codes": "lm_head",
        "model.rope": "rest",
    }
    assert {path: component_of(path) for path in expected} == expected


def test_state_of_gdn() -> None:
    config = SimpleNamespace(
        full_attention_interval=4,
        num_hidden_layers=48,
        linear_num_value_heads=32,
        linear_value_head_dim=128,
        linear_key_head_dim=128,
    )
    assert state_bytes(config, 2) == 2 * 36 * 32 * 128 * 128 * 2  # 75 MB
    assert state_bytes(SimpleNamespace(num_hidden_layers=48), 2) == 0
