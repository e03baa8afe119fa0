"""Memory that a model needs."""

from collections.abc import Iterator
from typing import Any

import pytest

from gb10.checkpoint.headers import Tensor
from gb10.checkpoint.size import (
    KV_CACHE_CEILING,
    KV_CACHE_FLOOR,
    CacheShape,
    cache_shape,
    decoded_token_bytes,
    kv_cache_bytes,
    weight_bytes,
)
from gb10.units import GIB, MIB

LINEAR = (
    Tensor("q.weight", "U8", (64, 32), 2048),
    Tensor("q.weight_scale", "F8_E4M3", (64, 4), 256),
    Tensor("q.weight_scale_2", "F32", (), 4),
    Tensor("norm.weight", "BF16", (64,), 128),
)


@pytest.mark.parametrize(
    ("mode", "size"), [("dequant", 64 * 64 * 2 + 4 + 128), ("packed", 2436), ("emulate", 2436), (None, 2436)]
)
def test_weight_bytes_by_mode(mode: str | None, size: int) -> None:
    assert weight_bytes(LINEAR, mode) == size


@pytest.mark.parametrize(
    ("element", "size"), [(2, 64 * 64 * 2 + 4 + 128 + 64), (4, 64 * 64 * 4 + 4 + 128 + 128)]
)
def test_matrices_take_the_models_type(element: int, size: int) -> None:
    """A matrix in F32 is loaded as BF16, one in BF16 as F32 with --dtype float32; vectors are not counted."""
    stored = (*LINEAR, Tensor("router.weight", "F32", (4, 8), 128))
    assert weight_bytes(stored, "dequant", element) == size


def test_u8_without_block_scales_is_not_nvfp4() -> None:
    assert weight_bytes([Tensor("table", "U8", (100,), 100)], "dequant") == 100


PLAIN = {
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_size": 512,
}
HYBRID = {
    **PLAIN,
    "full_attention_interval": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
}


@pytest.mark.parametrize(
    ("config", "element", "shape"),
    [
        (PLAIN, 2, CacheShape(2 * 4 * 2 * 64 * 2, 0)),
        (PLAIN, 1, CacheShape(2 * 4 * 2 * 64, 0)),
        ({"text_config": PLAIN}, 2, CacheShape(2 * 4 * 2 * 64 * 2, 0)),
        ({k: v for k, v in PLAIN.items() if k != "head_dim"}, 2, CacheShape(2 * 4 * 2 * 64 * 2, 0)),
        (HYBRID, 2, CacheShape(2 * 2 * 64 * 2, 3 * ((2 * 2 * 64 + 4 * 64) * 3 * 2 + 4 * 64 * 64 * 4))),
        (
            {**PLAIN, "layer_types": ["linear_attention", "full_attention"] * 2},
            2,
            CacheShape(2 * 2 * 2 * 64 * 2, 0),
        ),
        ({}, 2, CacheShape(0, 0)),
        # MLA: a latent and a rotary part in each layer, once for all heads.
        ({**PLAIN, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 2, CacheShape(4 * (512 + 64) * 2, 0)),
        # Nemotron-H: the layers marked * attend, those marked M have a state.
        (
            {
                **PLAIN,
                "num_hidden_layers": 6,
                "hybrid_override_pattern": "ME*M-*",
                "mamba_num_heads": 8,
                "mamba_head_dim": 16,
                "n_groups": 2,
                "ssm_state_size": 32,
                "conv_kernel": 4,
            },
            2,
            CacheShape(2 * 2 * 2 * 64 * 2, 2 * ((8 * 16 + 2 * 2 * 32) * 3 * 2 + 8 * 16 * 32 * 4)),
        ),
        (
            {**PLAIN, "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 128},
            2,
            CacheShape(2 * 2 * 2 * 64 * 2, 0, 2 * 2 * 2 * 64 * 2, 128),
        ),
        # The last two layers use the cache of earlier ones.
        ({**PLAIN, "num_kv_shared_layers": 2}, 2, CacheShape(2 * 2 * 2 * 64 * 2, 0)),
        (
            {**PLAIN, "num_hidden_layers": None, "layers_block_type": ["mamba", "moe", "attention"] * 2},
            2,
            CacheShape(2 * 2 * 2 * 64 * 2, 0),
        ),
        ({**PLAIN, "sliding_window": 128, "use_sliding_window": False}, 2, CacheShape(2048, 0, 0, 128)),
    ],
)
def test_cache_shape(config: dict[str, Any], element: int, shape: CacheShape) -> None:
    assert cache_shape(config, element) == shape


def test_a_window_bounds_a_sequence() -> None:
    shape = CacheShape(per_token=1, per_sequence=100, per_window_token=10, window=512)
    assert shape.sequence(1000) == 1000 + 10 * 1000 + 400
    assert shape.sequence(100_000) == 100_000 + 10 * (512 + 8192) + 400
    assert shape.tokens(shape.sequence(100_000)) == 100_000
    assert shape.tokens(shape.sequence(100_000) - 1) == 99_999
    assert shape.tokens(399) == 0


def test_heads_are_split_over_ranks_and_a_latent_is_not() -> None:
    assert cache_shape(PLAIN, ranks=2).per_token == cache_shape(PLAIN).per_token // 2
    assert cache_shape(PLAIN, ranks=8).per_token == cache_shape(PLAIN).per_token // 2
    latent = {**PLAIN, "kv_lora_rank": 512}
    assert cache_shape(latent, ranks=2) == cache_shape(latent)


def test_what_the_weights_leave_bounds_the_cache() -> None:
    shape = CacheShape(1024, 0)
    assert kv_cache_bytes(shape, 1 << 20, 32, 64 * GIB, left=2 * GIB) == 2 * GIB
    assert kv_cache_bytes(shape, 1 << 20, 32, 64 * GIB, left=0) == 1280 * MIB


def test_kv_cache_is_bounded() -> None:
    shape = CacheShape(1024, 0)
    assert kv_cache_bytes(shape, 16, 1, 64 * GIB) == KV_CACHE_FLOOR
    assert kv_cache_bytes(shape, 4096, 32, 64 * GIB) == 160 * MIB
    assert kv_cache_bytes(shape, 1 << 20, 32, 64 * GIB) == KV_CACHE_CEILING
    assert kv_cache_bytes(shape, 1 << 20, 2, 5 * GIB) == 1280 * MIB  # what one sequence needs
    assert kv_cache_bytes(CacheShape(1000, 0), 300_000, 1, 64 * GIB) % MIB == 0


QWEN3_NEXT = {
    "num_hidden_layers": 48,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "tie_word_embeddings": False,
}


def _qwen3_next_80b() -> Iterator[Tensor]:
    """The tensors of Qwen3-Next-80B-A3B in NVFP4 as NVIDIA ships it; the experts of a layer as one."""

    def matrix(name: str, rows: int, columns: int, *, packed: bool = False) -> Iterator[Tensor]:
        if packed:
            yield Tensor(f"{name}.weight", "U8", (rows, columns // 2), rows * columns // 2)
            yield Tensor(f"{name}.weight_scale", "F8_E4M3", (rows, columns // 16), rows * columns // 16)
        else:
            yield Tensor(f"{name}.weight", "BF16", (rows, columns), 2 * rows * columns)

    yield from matrix("model.embed_tokens", 151936, 2048)
    yield from matrix("lm_head", 151936, 2048)
    yield from matrix("mtp.layers.0.self_attn.q_proj", 8192, 2048)
    for number in range(48):
        layer = f"model.layers.{number}"
        if number % 4 == 3:
            for name, rows in (("q", 8192), ("k", 512), ("v", 512)):
                yield from matrix(f"{layer}.self_attn.{name}_proj", rows, 2048)
            yield from matrix(f"{layer}.self_attn.o_proj", 2048, 4096, packed=True)
        else:
            yield from matrix(f"{layer}.linear_attn.in_proj_qkvz", 12288, 2048)
            yield from matrix(f"{layer}.linear_attn.in_proj_ba", 64, 2048)
            yield from matrix(f"{layer}.linear_attn.out_proj", 2048, 4096, packed=True)
        yield from matrix(f"{layer}.mlp.gate", 512, 2048)
        yield from matrix(f"{layer}.mlp.shared_expert_gate", 1, 2048)
        for name in ("shared_expert", "experts.0"):
            count = 512 if name == "experts.0" else 1
            yield from matrix(f"{layer}.mlp.{name}.gate_proj", 2 * 512 * count, 2048, packed=True)
            yield from matrix(f"{layer}.mlp.{name}.down_proj", 2048 * count, 512, packed=True)


@pytest.mark.parametrize(
    ("dense", "head", "gigabytes"),
    [("", "", 4.16), ("fp8", "", 3.03), ("fp8", "fp8", 2.72), ("nvfp4", "", 2.53), ("nvfp4", "nvfp4", 2.08)],
)
def test_what_a_decoded_token_reads(dense: str, head: str, gigabytes: float) -> None:
    """The figures of docs/quality.md, which come from elsewhere."""
    tensors = list(_qwen3_next_80b())
    formats = {
        tensor: form
        for tensor in tensors
        for form in [head if tensor.name.startswith("lm_head") else dense]
        if form and tensor.dtype == "BF16" and ("attn" in tensor.name or "lm_head" in tensor.name)
    }
    read = decoded_token_bytes(tensors, QWEN3_NEXT, formats=formats)
    assert read / 1e9 == pytest.approx(gigabytes, rel=0.005)


def test_a_tied_embedding_is_read_as_the_head() -> None:
    tensors = [Tensor("model.embed_tokens.weight", "BF16", (100, 64), 12800)]
    assert decoded_token_bytes(tensors, {"tie_word_embeddings": True}) == 12800
    assert decoded_token_bytes(tensors, {}) == 0
