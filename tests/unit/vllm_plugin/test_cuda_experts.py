"""NVFP4 experts on a GPU: which class is chosen, what it calls, and the shared expert in it; on stand-ins."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import cpu_operators

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import (
    FusedMoEConfig,
    FusedMoEParallelConfig,
    RoutingMethodType,
    nvfp4_moe_quant_config,
)
from vllm.model_executor.layers.fused_moe.oracle.nvfp4 import NvFp4MoeBackend
from vllm.model_executor.layers.quantization.utils.quant_utils import kNvfp4Dynamic, kNvfp4Static

from gb10 import nvfp4
from gb10.vllm_plugin.cuda.experts import kernels, layer, select, workspace
from gb10.vllm_plugin.cuda.experts.kernels import CutlassDecodeExperts, NativeExperts
from gb10.vllm_plugin.cuda.linear import Native

BF16 = torch.bfloat16
EXPERTS, HIDDEN, INNER, SHARED, TOPK = 6, 128, 64, 128, 3


@pytest.fixture(autouse=True)
def operators() -> cpu_operators.Library:
    torch.manual_seed(0)
    library = cpu_operators.install()
    library.calls.clear()
    workspace._held.clear()
    return library


def pretend(monkeypatch: pytest.MonkeyPatch, capability: int) -> None:
    platform = SimpleNamespace(
        is_cuda=lambda: True,
        has_device_capability=lambda least: capability >= least,
        is_device_capability_family=lambda family: capability // 10 == family // 10,
        device_name="pretended",
    )
    monkeypatch.setattr(kernels, "current_platform", platform)


def config_of(**changes: Any) -> FusedMoEConfig:
    given: dict[str, Any] = {
        "num_experts": EXPERTS,
        "experts_per_token": TOPK,
        "hidden_dim": HIDDEN,
        "intermediate_size": INNER,
        "num_local_experts": EXPERTS,
        "num_logical_experts": EXPERTS,
        "activation": MoEActivation.SILU,
        "device": "cpu",
        "routing_method": RoutingMethodType.Renormalize,
        "moe_parallel_config": FusedMoEParallelConfig.make_no_parallel(),
        "in_dtype": BF16,
    }
    return FusedMoEConfig(**given | changes)


@pytest.mark.parametrize("activation_key", [None, kNvfp4Dynamic], ids=["w4a16", "w4a4"])
@pytest.mark.parametrize("capability", [90, 121, 89])
def test_what_is_chosen(capability: int, activation_key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, capability)
    wanted: Any = (NvFp4MoeBackend.EMULATION, NativeExperts)
    if capability == 121 and activation_key is not None:
        wanted = (NvFp4MoeBackend.VLLM_CUTLASS, CutlassDecodeExperts)
    if capability == 89:
        wanted = None
    assert select.choose(config_of(), kNvfp4Static, activation_key) == wanted


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"activation": MoEActivation.SWIGLUOAI}, "swigluoai activations"),
        ({"swiglu_limit": 7.0}, "a SwiGLU with a limit"),
        ({"has_bias": True}, "biases"),
        ({"hidden_dim": 96}, "hidden and intermediate size 96 and 64"),
        ({"intermediate_size": 96}, "hidden and intermediate size 128 and 96"),
        ({"experts_per_token": 33}, "6 experts, 33 a token"),
        ({"in_dtype": torch.float32}, "torch.float32 activations"),
        ({"is_lora_enabled": True}, "LoRA"),
    ],
)
def test_what_is_not_ours_is_vllms_and_the_log_says_why(
    change: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    pretend(monkeypatch, 90)
    assert select.choose(config_of(**change), kNvfp4Static, kNvfp4Dynamic) is None
    assert said in caplog.text


def test_a_backend_that_is_asked_for_stays(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    pretend(monkeypatch, 90)
    assert select.choose(config_of(moe_backend="marlin"), kNvfp4Static, kNvfp4Dynamic) is None
    assert not caplog.text


class Case:
    """A loaded layer with our class, a shared expert, and what both compute in float32."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend(monkeypatch, 90)
        self.exact: dict[str, torch.Tensor] = {}
        routed: Any = torch.nn.Module()
        globals_of = {}
        for name, rows, columns in (("w13", 2 * INNER, HIDDEN), ("w2", HIDDEN, INNER)):
            weight = torch.randn(EXPERTS, rows, columns) / columns**0.5
            held = nvfp4.quantize(weight, weight.abs().amax((-2, -1)) / 2688)
            self.exact[name], globals_of[name] = nvfp4.dequantize(*held), held.global_scale
            for part, tensor in (("weight", held.packed), ("weight_scale", held.block_scales)):
                routed.register_parameter(f"{name}_{part}", torch.nn.Parameter(tensor, requires_grad=False))
        quant_config = nvfp4_moe_quant_config(
            g1_alphas=globals_of["w13"],
            g2_alphas=globals_of["w2"],
            a1_gscale=torch.ones(1),
            a2_gscale=torch.ones(1),
            w1_scale=routed.w13_weight_scale,
            w2_scale=routed.w2_weight_scale,
        )
        self.kernel = NativeExperts(moe_config=config_of(), quant_config=quant_config)
        self.kernel.process_weights_after_loading(routed)
        routed.expert_map = None
        method = SimpleNamespace(moe_kernel=SimpleNamespace(is_monolithic=False, fused_experts=self.kernel))
        routed.quant_method = method
        self.routed = routed

        self.gate_weight = torch.randn(1, HIDDEN).to(BF16)
        self.module: Any = SharedModule(self)
        self.router = torch.randn(EXPERTS, HIDDEN)
        self.runner: Any = SimpleNamespace(
            routed_experts=routed,
            _shared_experts=SimpleNamespace(_layer=self.module),
            _forward_entry="shared",
            _select_forward=lambda: "alone" if self.runner._shared_experts is None else "shared",
            moe_config=config_of(),
            routed_input_transform=None,
            enable_dbo=False,
            gate=lambda x: (x.float() @ self.router.T, None),
            router=self,
        )

    def select_experts(self, hidden_states: torch.Tensor, router_logits: torch.Tensor, **_: Any) -> Any:
        """As vLLM's router: weights, ids."""
        weights, ids = router_logits.softmax(-1).topk(TOPK)
        return weights, ids.int()

    def routing(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.rand(tokens, EXPERTS).argsort(1)[:, :TOPK].int()
        return ids, torch.rand(tokens, TOPK)

    def expected(
        self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, multiplier: torch.Tensor | None
    ) -> torch.Tensor:
        out = torch.zeros(x.shape)
        for m, token in enumerate(x.float()):
            for e, weight in zip(ids[m].tolist(), weights[m].tolist(), strict=True):
                out[m] += weight * mlp(token, self.exact["w13"][e], self.exact["w2"][e])
            if multiplier is not None:
                out[m] += multiplier[m] * mlp(token, self.exact["up"], self.exact["down"])
        return out


class SharedModule(torch.nn.Module):
    """As vLLM's Qwen2MoeMLP."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = [case]
        for name, label, rows, columns in (
            ("gate_up_proj", "up", 2 * SHARED, HIDDEN),
            ("down_proj", "down", HIDDEN, SHARED),
        ):
            held = nvfp4.quantize(torch.randn(rows, columns) / columns**0.5)
            case.exact[label] = nvfp4.dequantize(*held)
            linear: Any = torch.nn.Module()
            linear.gb10_native = Native(held.packed, held.block_scales, held.global_scale.reshape(1), False)
            setattr(self, name, linear)
        self.act_fn = _silu_and_mul()
        self.expert_gate = SimpleNamespace(weight=case.gate_weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        exact = self.case[0].exact
        rows = [mlp(token, exact["up"], exact["down"]) for token in x.float()]
        gate = (x.float() @ self.expert_gate.weight.float().T).sigmoid()
        out: torch.Tensor = (gate * torch.stack(rows)).to(x.dtype)
        return out


def _silu_and_mul() -> Any:
    """An object of vLLM's class, without what its constructor asks of a configuration."""
    made = SiluAndMul.__new__(SiluAndMul)
    torch.nn.Module.__init__(made)
    return made


def mlp(token: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    gate, value = (up @ token).chunk(2)
    return down @ (F.silu(gate) * value)


def close(out: torch.Tensor, exact: torch.Tensor) -> bool:
    return bool((out.double() - exact.double()).norm() <= 5e-3 * exact.double().norm())


@pytest.mark.parametrize("tokens", [1, 16, 17, 40])
def test_the_modular_kernel_drives_it(
    tokens: int, monkeypatch: pytest.MonkeyPatch, operators: cpu_operators.Library
) -> None:
    case = Case(monkeypatch)
    x = torch.randn(tokens, HIDDEN).to(BF16)
    ids, weights = case.routing(tokens)
    out = torch.full((tokens, HIDDEN), torch.nan, dtype=BF16)
    case.kernel.apply(
        output=out,
        hidden_states=x,
        w1=case.routed.w13_weight,
        w2=case.routed.w2_weight,
        topk_weights=weights,
        topk_ids=ids,
        activation=MoEActivation.SILU,
        expert_map=None,
        apply_router_weight_on_input=False,
    )
    assert close(out, case.expected(x, ids, weights, None))
    assert operators.calls == [("moe_decode" if tokens <= 16 else "moe_grouped", tokens)]


def test_weights_on_the_input_are_not_taken_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(monkeypatch)
    x = torch.randn(2, HIDDEN).to(BF16)
    ids, weights = case.routing(2)
    out = torch.empty_like(x)
    common: dict[str, Any] = {"output": out, "hidden_states": x, "topk_ids": ids, "expert_map": None}
    case.kernel.apply(**common, topk_weights=weights, apply_router_weight_on_input=True)
    assert close(out, case.expected(x, ids, torch.ones_like(weights), None))


def test_an_expert_map(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(monkeypatch)
    x, weights = torch.randn(3, HIDDEN).to(BF16), torch.rand(3, 2)
    expert_map = torch.tensor([-1, 2, -1, 5, 0, -1], dtype=torch.int32)
    ids = torch.tensor([[1, 0], [3, 4], [2, 5]], dtype=torch.int32)
    out = torch.empty_like(x)
    case.kernel.run(x, ids, weights, out, expert_map)
    local = expert_map[ids.long()]
    held = weights.masked_fill(local < 0, 0.0)
    assert close(out[:2], case.expected(x, local.clamp(min=0), held, None)[:2]) and not out[2].any()


@pytest.mark.parametrize("tokens", [2, 20])
def test_the_shared_expert_is_folded_in(
    tokens: int, monkeypatch: pytest.MonkeyPatch, operators: cpu_operators.Library
) -> None:
    case = Case(monkeypatch)
    experts = layer.experts_of(case.runner)
    assert experts is not None and experts.shared is not None and not experts.why_apart
    assert layer.experts_of(case.runner) is experts
    x = torch.randn(tokens, HIDDEN).to(BF16)
    ids, weights = case.routing(tokens)
    multiplier, out = torch.rand(tokens), torch.empty_like(x)
    experts.forward(x, ids, weights, multiplier, out)
    assert close(out, case.expected(x, ids, weights, multiplier))
    assert len(operators.calls) == 1


def test_gate_and_up_of_the_shared_expert_may_have_scales_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(monkeypatch)
    case.module.gate_up_proj.part_ratios = torch.tensor([1.0, 0.3]).repeat_interleave(SHARED)
    case.exact["up"][SHARED:] *= 0.3
    experts = layer.experts_of(case.runner)
    assert experts is not None and experts.shared is not None
    x, out = torch.randn(2, HIDDEN).to(BF16), torch.empty(2, HIDDEN, dtype=BF16)
    ids, weights = case.routing(2)
    experts.forward(x, ids, weights, torch.ones(2), out)
    assert close(out, case.expected(x, ids, weights, torch.ones(2)))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda module: delattr(module.down_proj, "gb10_native"), "is not NVFP4 in the checkpoint's layout"),
        (lambda module: setattr(module, "act_fn", torch.nn.GELU()), "is no SwiGLU"),
        (lambda module: setattr(module.down_proj, "bias", torch.zeros(1)), "has biases"),
        (
            lambda module: setattr(module.up, "gb10_native", module.up.gb10_native._replace(swizzled=True)),
            "has its block scales in another order",
        ),
        (lambda module: setattr(module.down_proj, "part_ratios", torch.ones(1)), "has several global scales"),
    ],
)
def test_a_shared_expert_that_cannot_be_folded_in_runs_beside(
    spoil: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(monkeypatch)
    object.__setattr__(case.module, "up", case.module.gate_up_proj)
    spoil(case.module)
    experts = layer.experts_of(case.runner)
    assert experts is not None and experts.shared is None and experts.why_apart == said
    x, out = torch.randn(3, HIDDEN).to(BF16), torch.empty(3, HIDDEN, dtype=BF16)
    ids, weights = case.routing(3)
    multiplier = (x.float() @ case.gate_weight.float().T).sigmoid().reshape(-1)
    experts.forward(x, ids, weights, multiplier, out)
    assert close(out, case.expected(x, ids, weights, multiplier))
    assert select.fold(case.runner) == f"apart from the shared expert, which {said}"
    assert case.runner._forward_entry == "shared"


def test_a_runner_alone_takes_the_shared_expert_along(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(monkeypatch)
    assert select.fold(case.runner) == "with the shared expert"
    assert case.runner._shared_experts is None and case.runner._forward_entry == "alone"
    x = torch.randn(5, HIDDEN).to(BF16)
    out = select.forward(case.runner, case.runner.gb10_folded, x, None)
    weights, ids = case.select_experts(x, x.float() @ case.router.T)
    multiplier = (x.float() @ case.gate_weight.float().T).sigmoid().reshape(-1)
    assert close(out, case.expected(x, ids, weights, multiplier))


def test_a_runner_without_ours_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(monkeypatch)
    case.routed.quant_method.moe_kernel.fused_experts = object()
    assert select.fold(case.runner) is None and case.runner._forward_entry == "shared"


def test_the_workspace_is_there_before_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM measures free memory when the weights are loaded; a call asks for no more."""
    most = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_batched_tokens=100))
    monkeypatch.setattr(kernels, "get_current_vllm_config_or_none", lambda: most)
    case = Case(monkeypatch)
    experts = layer.experts_of(case.runner)
    assert experts is not None
    (held,) = workspace._held.values()
    for tokens in (1, 16, 17, 100):
        x = torch.randn(tokens, HIDDEN).to(BF16)
        experts.forward(x, *case.routing(tokens), torch.ones(tokens), torch.empty_like(x))
    assert workspace._held[held.device] is held


def test_more_tokens_than_a_call_takes(monkeypatch: pytest.MonkeyPatch, operators: Any) -> None:
    monkeypatch.setattr(kernels, "MOST_TOKENS", 20)
    case = Case(monkeypatch)
    experts = layer.experts_of(case.runner)
    assert experts is not None
    x, out = torch.randn(45, HIDDEN).to(BF16), torch.empty(45, HIDDEN, dtype=BF16)
    ids, weights = case.routing(45)
    multiplier = torch.rand(45, 1)
    experts.forward(x, ids, weights, multiplier, out)
    assert close(out, case.expected(x, ids, weights, multiplier.reshape(-1)))
    assert operators.calls == [("moe_grouped", 20), ("moe_grouped", 20), ("moe_grouped", 5)]
