"""Attention layers of our engine, on stand-ins: who writes the cache, with what, and what stays vLLM's."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from reference import cpu_operators
from vllm.model_executor.layers.attention.attention import Attention
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm
from vllm.model_executor.layers.quantization.utils.quant_utils import GroupShape
from vllm.model_executor.layers.rotary_embedding import MRotaryEmbedding, RotaryEmbedding
from vllm.v1.attention.backend import AttentionType

from gb10.vllm_plugin.cuda import dispatch
from gb10.vllm_plugin.cuda.layers import attention

BF16, F8 = torch.bfloat16, torch.float8_e4m3fn
HEADS, KV_HEADS, SIZE, ROTARY = 4, 2, 64, 16
TOKENS, BLOCKS, BLOCK_SIZE = 5, 3, 4
SLOTS = (7, -1, 0, 11)
"""The second token is padding, and so is the last, which has none."""


def _bare(kind: type, **attributes: Any) -> Any:
    """An object of this very class, without its construction."""
    made = kind.__new__(kind)
    torch.nn.Module.__init__(made)
    for name, value in attributes.items():
        object.__setattr__(made, name, value)
    return made


def _norm(kind: type) -> Any:
    weight = torch.nn.Parameter((torch.randn(SIZE) * 0.2 + 1).to(BF16), requires_grad=False)
    return _bare(kind, weight=weight, variance_epsilon=1e-6)


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Qwen3-Next's attention as far as it is looked at, on FlashAttention with an FP8 cache."""
    cpu_operators.install()
    torch.manual_seed(5)
    monkeypatch.setattr(dispatch, "_seen", {})
    angles = torch.arange(50)[:, None] * torch.rand(ROTARY // 2)
    rope = _bare(
        RotaryEmbedding,
        is_neox_style=True,
        rotary_dim=ROTARY,
        cos_sin_cache=torch.cat((angles.cos(), angles.sin()), dim=1).to(BF16),
    )
    backend = SimpleNamespace(get_name=lambda: "FLASH_ATTN", forward_includes_kv_cache_update=False)
    inner = _bare(
        Attention,
        layer_name="layer.attn",
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_size=SIZE,
        head_size_v=SIZE,
        attn_type=AttentionType.DECODER,
        kv_sharing_target_layer_name=None,
        attn_backend=backend,
        impl=SimpleNamespace(dcp_world_size=1),
        kv_cache_dtype="fp8",
        query_quant=SimpleNamespace(static=True, group_shape=GroupShape.PER_TENSOR),
        _q_scale=torch.tensor(0.03),
        _k_scale=torch.tensor(0.02),
        _v_scale=torch.tensor([0.9]),
    )
    return SimpleNamespace(
        attn=inner,
        rotary_emb=rope,
        q_norm=_norm(GemmaRMSNorm),
        k_norm=_norm(GemmaRMSNorm),
        dual_chunk_attention_config=None,
        attn_output_gate=True,
    )


class Backend:
    """What vLLM's functions around its backend were given."""

    def __init__(self, slots: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = torch.zeros(BLOCKS, KV_HEADS, BLOCK_SIZE, 2 * SIZE, dtype=torch.uint8)
        self.updates: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.query = torch.empty(0)
        context = (None, None, self.cache, slots)
        monkeypatch.setattr(attention, "get_attention_context", lambda name: context)
        monkeypatch.setattr(attention, "unified_kv_cache_update", self._update)
        monkeypatch.setattr(attention, "unified_attention_with_output", self._attend)

    def _update(self, key: torch.Tensor, value: torch.Tensor, name: str) -> None:
        assert name == "layer.attn"
        self.updates.append((key.clone(), value.clone()))

    def _attend(self, query: torch.Tensor, key: Any, value: Any, output: torch.Tensor, name: str) -> None:
        assert key.shape == value.shape == (TOKENS, KV_HEADS, SIZE) and name == "layer.attn"
        self.query = query.clone()
        output.fill_(2.0)


def _run(layer: Any, backend: Backend, gated: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """The projection that was given, and the output."""
    torch.manual_seed(6)
    qkv = torch.randn(TOKENS, ((1 + gated) * HEADS + 2 * KV_HEADS) * SIZE).to(BF16)
    out = torch.full((TOKENS, HEADS * SIZE), float("nan"), dtype=BF16)
    layer.attn.gb10_front(qkv, torch.arange(TOKENS) * 9, out)
    return qkv, out


def test_our_kernel_writes_a_cache_that_it_knows(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes as when vLLM's update is given what comes out."""
    assert attention.prepare(layer, "layer") is None
    backend = Backend(torch.tensor(SLOTS), monkeypatch)
    qkv, out = _run(layer, backend)
    assert backend.updates == []
    assert backend.query.dtype == F8
    gates = qkv[:, : 2 * HEADS * SIZE].view(TOKENS, HEADS, 2, SIZE)[:, :, 1]
    assert torch.equal(out.view(gates.shape), (2 * gates.float().sigmoid()).to(BF16))
    assert [(one.operation, one.kernel) for one in dispatch.record()] == [("attention_front",) * 2]

    layer.attn.attn_backend.get_name = lambda: "CPU_ATTN"
    assert attention.prepare(layer, "layer") is None
    other = Backend(torch.tensor(SLOTS), monkeypatch)
    _run(layer, other)
    (key, value), *more = other.updates
    assert not more and not other.cache.any()
    assert torch.equal(value, qkv[:, -KV_HEADS * SIZE :].view(value.shape))
    assert torch.equal(backend.query.view(torch.uint8), other.query.view(torch.uint8))
    wanted = torch.zeros(BLOCKS * BLOCK_SIZE, KV_HEADS, 2, SIZE, dtype=torch.uint8)
    for token, slot in enumerate(SLOTS):
        if slot >= 0:
            for part, numbers, scale in ((0, key, 0.02), (1, value, 0.9)):
                eight = (numbers[token].float() / torch.tensor(scale)).clamp(-448, 448).to(F8)
                wanted[slot, :, part] = eight.view(torch.uint8)
    there = backend.cache.transpose(1, 2).reshape(wanted.shape)
    assert torch.equal(there, wanted)


def test_without_slots_nothing_is_written(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's profile run."""
    assert attention.prepare(layer, "layer") is None
    backend = Backend(None, monkeypatch)
    _run(layer, backend)
    assert len(backend.updates) == 1, "vLLM's update decides"
    assert not backend.cache.any()


def test_without_gates_or_a_quantised_query(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen3-MoE's."""
    layer.q_norm, layer.k_norm, layer.attn_output_gate = _norm(RMSNorm), _norm(RMSNorm), False
    layer.attn.query_quant, layer.attn.kv_cache_dtype = None, "auto"
    assert attention.prepare(layer, "layer") is None
    assert not layer.attn.gb10_front.plus_one
    backend = Backend(torch.tensor(SLOTS), monkeypatch)
    backend.cache = backend.cache.to(BF16)
    monkeypatch.setattr(
        attention, "get_attention_context", lambda name: (None, None, backend.cache, torch.tensor(SLOTS))
    )
    _, out = _run(layer, backend, gated=False)
    assert backend.query.dtype == BF16 and bool((out == 2).all())
    assert int((backend.cache.transpose(1, 2).reshape(12, -1) != 0).any(1).sum()) == 3


def _several(layer: Any) -> None:
    layer.attn.query_quant = SimpleNamespace(static=True, group_shape=GroupShape(-1, 128))


def _rows(layer: Any) -> None:
    layer.rotary_emb = _bare(MRotaryEmbedding, **layer.rotary_emb.__dict__)
    layer.rotary_emb.mrope_section, layer.rotary_emb.mrope_interleaved = [4, 2, 2], False


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda one: setattr(one.attn, "head_size", 80), "heads of 80"),
        (lambda one: setattr(one.attn, "attn_type", AttentionType.ENCODER_ONLY), "an encoder"),
        (lambda one: setattr(one.attn, "kv_sharing_target_layer_name", "x"), "a cache of another layer"),
        (
            lambda one: setattr(one.attn.attn_backend, "forward_includes_kv_cache_update", True),
            "a backend that writes the cache itself",
        ),
        (lambda one: setattr(one, "dual_chunk_attention_config", {}), None),
        (lambda one: setattr(one, "dual_chunk_attention_config", {"x": 1}), "dual chunks"),
        (lambda one: setattr(one, "k_norm", _norm(RMSNorm)), "other norms"),
        (lambda one: setattr(one.rotary_emb, "is_neox_style", False), "a rotary embedding by pairs"),
        (lambda one: setattr(one.rotary_emb, "rotary_dim", 18), "18 that rotate"),
        (
            lambda one: setattr(one.rotary_emb, "cos_sin_cache", torch.zeros(4, ROTARY)),
            "cosines in torch.float32",
        ),
        (_rows, "MRoPE in another order"),
        (_several, "a query with several scales"),
    ],
)
def test_what_we_do_not_know_stays_vllms(layer: Any, spoil: Callable[[Any], None], why: str | None) -> None:
    spoil(layer)
    assert attention.prepare(layer, "layer") == why


@pytest.mark.parametrize(
    ("spoil", "writes"),
    [
        (lambda inner: None, True),
        (lambda inner: setattr(inner, "kv_cache_dtype", "fp8_e5m2"), False),
        (lambda inner: setattr(inner, "kv_cache_dtype", "fp8_per_token_head"), False),
        (lambda inner: setattr(inner, "_k_scale", torch.ones(2)), False),
        (lambda inner: setattr(inner.impl, "dcp_world_size", 2), False),
        (lambda inner: setattr(inner.attn_backend, "get_name", lambda: "TURBOQUANT"), False),
    ],
)
def test_a_cache_that_we_do_not_know_is_written_by_vllm(
    layer: Any, spoil: Callable[[Any], None], writes: bool
) -> None:
    spoil(layer.attn)
    assert attention.prepare(layer, "layer") is None
    assert layer.attn.gb10_front.writes is writes


def test_vllms_backends_still_split_their_cache_so() -> None:
    """Each of SPLIT_CACHES has keys and values side by side in the last dimension, heads before tokens."""
    import inspect

    from vllm.v1.attention.backends import flash_attn, triton_attn

    for update in (
        flash_attn.FlashAttentionImpl.do_kv_cache_update,
        triton_attn.TritonAttentionImpl.do_kv_cache_update,
    ):
        assert "kv_cache.transpose(1, 2).split(self.head_size, dim=-1)" in inspect.getsource(update)
