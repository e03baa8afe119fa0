"""The self-test of our kernels, on stand-ins: it passes where they are right and names what is not."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from reference import cpu_operators

from gb10.kernels.moe_decode import SharedExpert, workspace_bytes
from gb10.kernels.moe_router import workspace_bytes as router_bytes
from gb10.nvfp4 import quantize
from gb10.vllm_plugin.cuda import dispatch, selftest
from gb10.vllm_plugin.cuda.layers.attention import Front
from gb10.vllm_plugin.cuda.layers.block import Block
from gb10.vllm_plugin.cuda.layers.gdn import Batch, Core
from gb10.vllm_plugin.cuda.layers.norm import add_norm
from gb10.vllm_plugin.cuda.requant.dense import Dense
from gb10.vllm_plugin.cuda.settings import DECODE, SelfTest
from gb10.vllm_plugin.refusal import Refused

HIDDEN, INNER, EXPERTS, TOPK = 256, 64, 8, 3
KEY_HEADS, HEADS, SIZE = 2, 4, 64
BF16 = torch.bfloat16

Native = tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape) * 0.1


def _four_bit(*shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    wide = _random(*shape)
    made = quantize(wide, wide.abs().amax() / 2688)
    return made.packed, made.block_scales, (wide.abs().amax() / 2688).reshape(1)


class Experts:
    """Routed experts and a shared one, through the stand-in for ``moe_decode``."""

    def __init__(self) -> None:
        up, down = _four_bit(EXPERTS, 2 * INNER, HIDDEN), _four_bit(EXPERTS, HIDDEN, INNER)
        weights = (*up[:2], up[2].expand(EXPERTS), *down[:2], down[2].expand(EXPERTS))
        self.kernel = SimpleNamespace(weights=weights, swizzled=False, grouped=False)
        self.shared = SharedExpert(*_four_bit(2 * INNER, HIDDEN), *_four_bit(HIDDEN, INNER))
        self.routed, self.module = SimpleNamespace(expert_map=None), None

    def forward(
        self,
        x: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        multiplier: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        work = torch.empty(workspace_bytes(len(x), TOPK, INNER, INNER), dtype=torch.uint8)
        numbers = ("silu", float("inf"), 1.0, 0.0, False, False, False)
        shared = self.shared[:6]
        torch.ops.gb10.moe_decode(
            x, *self.kernel.weights, ids, weights, None, *shared, multiplier, *numbers, work, out
        )


class NativeLinear(torch.nn.Module):
    """An NVFP4 layer as gb10.vllm_plugin.cuda.linear holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.gb10_native: Native = (*_four_bit(80, HIDDEN), False)
        self.quant_method = SimpleNamespace(apply=self.product)

    @staticmethod
    def product(layer: "NativeLinear", x: torch.Tensor, bias: None) -> torch.Tensor:
        out = x.new_empty(len(x), 80)
        for piece in range(0, len(x), 16):
            some = slice(piece, piece + 16)
            torch.ops.gb10.nvfp4_gemv(x[some], *layer.gb10_native[:3], None, False, out[some])
        return out


def _front(cached: torch.dtype, *, writes: bool = True, gated: bool = True) -> Front:
    """Three heads of 64 and one of k and v, of which 16 numbers rotate."""
    attention = SimpleNamespace(
        num_heads=3,
        num_kv_heads=1,
        head_size=64,
        kv_cache_torch_dtype=cached,
        query_quant="static" if writes else None,
        _q_scale=torch.tensor(0.02),
        _k_scale=torch.tensor(0.03),
        _v_scale=torch.tensor([1.5]),
    )
    norm = SimpleNamespace(weight=_random(64).to(BF16) * 0.1, variance_epsilon=1e-6)
    angles = torch.arange(40)[:, None] * torch.rand(8)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1).to(BF16)
    return Front(attention, norm, norm, True, cos_sin, (0, 0), gated, writes, 3 * 64)


@pytest.fixture
def model() -> torch.nn.Module:
    """One layer of each kind."""
    cpu_operators.install()
    torch.manual_seed(3)
    columns = 2 * SIZE * KEY_HEADS + 2 * SIZE * HEADS
    layer: Any = torch.nn.Module()
    layer.in_proj_qkvz, layer.in_proj_ba = torch.nn.Module(), torch.nn.Module()
    layer.conv1d, layer.norm = SimpleNamespace(bias=None), SimpleNamespace(weight=torch.ones(SIZE), eps=1e-6)
    layer.A_log, layer.dt_bias = torch.randn(HEADS).abs().log(), torch.randn(HEADS)
    layer.head_k_dim = layer.head_v_dim = SIZE
    layer.gqa_interleaved_layout, layer.hidden_size, layer.num_spec = True, HIDDEN, 2
    layer.get_state_dtype = lambda: (BF16, torch.float32)
    dense = Dense.of(_random(columns + 2 * HEADS, HIDDEN).to(BF16), "fp8", "gdn.in_proj")
    conv = _random(columns - SIZE * HEADS, 4).to(BF16) * 5
    layer.gb10_gdn = Core(layer, dense, KEY_HEADS, HEADS, columns - SIZE * HEADS, columns, conv)
    router = SimpleNamespace(top_k=TOPK, renormalize=True, capture_fn=None, _routing_replay_out=None)
    decoder: Any = torch.nn.Module()
    decoder.mlp = torch.nn.Module()
    decoder.gb10_block = Block(
        name="mlp",
        runner=SimpleNamespace(router=router),
        experts=Experts(),  # type: ignore[arg-type]
        norm_weight=_random(HIDDEN).to(BF16),
        plus_one=True,
        epsilon=1e-6,
        gate_weight=_random(EXPERTS, HIDDEN).to(BF16),
        shared_gate_weight=_random(1, HIDDEN).to(BF16),
        workspace=torch.zeros(router_bytes(DECODE, EXPERTS), dtype=torch.uint8),
        reduces=False,
    )
    decoder.gb10_norm = True
    decoder.input_layernorm = SimpleNamespace(weight=_random(HIDDEN).to(BF16) + 1, variance_epsilon=1e-6)
    attention: Any = torch.nn.Module()
    attention.qkv_proj = torch.nn.Module()
    attention.gb10_front = _front(torch.uint8)
    last: Any = torch.nn.Module()
    last.qkv_proj = torch.nn.Module()
    last.gb10_front = _front(BF16, writes=False, gated=False)
    head: Any = torch.nn.Module()
    head.gb10_dense = Dense.of(_random(96, HIDDEN).to(BF16), "nvfp4", "lm_head", "lm_head")
    more = {"attention": attention, "last": last}
    return torch.nn.ModuleDict(
        {"gdn": layer, "layer": decoder, "native": NativeLinear(), "head": head} | more
    )


def test_right_kernels_pass(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_seen", {})
    done = list(selftest.checks(model, BF16))
    assert {check.operation for check in done} == {
        *("dense", "lm_head", "nvfp4_linear", "nvfp4_moe", "router", "norm", "attention_front", "gdn_decode")
    }
    assert [check.words for check in done if not check.passed] == []
    dispatch._seen.clear()
    selftest.run(model, BF16, SelfTest.REFUSE)
    assert dispatch.record() == (), "what the self-test runs is nobody's request"


def _scaled(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given, **named: function(*given, **named) * 1.2


def _break_dense(model: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model["gdn"].gb10_gdn.dense, "forward", _scaled(model["gdn"].gb10_gdn.dense.forward))


def _break_head(model: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model["head"].gb10_dense, "forward", _scaled(model["head"].gb10_dense.forward))


def _break_linear(model: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model["native"].quant_method, "apply", _scaled(NativeLinear.product))


def _break_experts(model: Any, patch: pytest.MonkeyPatch) -> None:
    """The shared expert is forgotten."""
    experts = model["layer"].gb10_block.experts
    forward = experts.forward
    patch.setattr(experts, "forward", lambda x, i, w, m, out: forward(x, i, w, torch.zeros_like(m), out))


def _break_router(model: Any, patch: pytest.MonkeyPatch) -> None:
    """The last choice is another expert."""
    choose = Block.choose

    def wrong(self: Block, x: torch.Tensor, residual: torch.Tensor) -> Any:
        routed = choose(self, x, residual)
        routed.ids[:, -1] = next(i for i in range(EXPERTS) if i not in routed.ids[0].tolist())
        return routed

    patch.setattr(Block, "choose", wrong)


def _break_gdn(model: Any, patch: pytest.MonkeyPatch) -> None:
    """The state is written to another slot."""
    decode = Core.decode

    def wrong(self: Core, mixed: Any, conv: Any, state: Any, *rest: Any) -> None:
        decode(self, mixed, conv, state, *rest)
        state.copy_(state.roll(1, 0))

    patch.setattr(Core, "decode", wrong)


def _break_drafts(model: Any, patch: pytest.MonkeyPatch) -> None:
    """The accepted tokens are forgotten."""
    decode = Core.decode

    def wrong(self: Core, mixed: Any, conv: Any, state: Any, batch: Batch, out: Any) -> None:
        decode(self, mixed, conv, state, batch._replace(accepted=None), out)

    patch.setattr(Core, "decode", wrong)


def _break_norm(model: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(selftest, "add_norm", lambda x, *given: add_norm(x * 1.2, *given))


def _break_front(model: Any, patch: pytest.MonkeyPatch) -> None:
    """Each token is where the next one should be."""
    front = Front.front

    def wrong(self: Front, qkv: Any, positions: Any, query: Any, key: Any, cache: Any, slots: Any) -> None:
        front(self, qkv, positions, query, key, cache, slots if slots is None else slots - 1)

    patch.setattr(Front, "front", wrong)


@pytest.mark.parametrize(
    ("operation", "break_it"),
    [
        ("dense", _break_dense),
        ("lm_head", _break_head),
        ("nvfp4_linear", _break_linear),
        ("nvfp4_moe", _break_experts),
        ("router", _break_router),
        ("gdn_decode", _break_gdn),
        ("gdn_decode", _break_drafts),
        ("norm", _break_norm),
        ("attention_front", _break_front),
    ],
)
def test_a_wrong_kernel_ends_the_start_with_its_operation(
    operation: str,
    break_it: Callable[[Any, pytest.MonkeyPatch], None],
    model: torch.nn.Module,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_it(model, monkeypatch)
    with pytest.raises(Refused) as caught:
        selftest.run(model, BF16, SelfTest.REFUSE)
    message = str(caught.value)
    assert f"{operation} of " in message and "--engine stock" in message
    assert "\n" not in message
    selftest.run(model, BF16, SelfTest.REPORT)


def test_a_kernel_that_raises_has_failed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise RuntimeError("nvfp4_gemv: x has\nshape [1]")

    monkeypatch.setattr(model["native"].quant_method, "apply", refuses)
    with pytest.raises(Refused, match=r"nvfp4_linear of native \(nvfp4_gemv: x has shape \[1\]\)"):
        selftest.run(model, BF16, SelfTest.REFUSE)


def test_a_result_that_is_no_number_fails() -> None:
    assert not selftest.Check("dense", "a", 1, float("nan"), 1.0).passed
