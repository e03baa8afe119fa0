"""The experts classes, driven as vLLM's modular MoE kernel drives them, on vLLM's real C++ kernel."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.platforms import current_platform

if not current_platform.is_cpu():
    pytest.skip("needs vLLM's CPU platform", allow_module_level=True)

import vllm.model_executor.layers.fused_moe.modular_kernel as mk
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import (
    FusedMoEConfig,
    FusedMoEParallelConfig,
    RoutingMethodType,
    nvfp4_moe_quant_config,
)
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    kFp8DynamicTokenSym,
    kNvfp4Dynamic,
    kNvfp4Static,
)

from gb10.nvfp4 import dequantize, fake_quantize_activations, quantize
from gb10.vllm_plugin.cpu import experts as cpu_experts
from gb10.vllm_plugin.cpu.experts import EmulateExperts, PackedExperts, VectorDequantExperts, local_expert_ids
from gb10.vllm_plugin.cpu.mode import Mode

EXPERTS, HIDDEN, INTERMEDIATE, TOKENS = 4, 64, 32, 9
GLOBAL_EXPERTS = 8
# This rank has the experts 2, 3, 6 and 7 of 8.
EXPERT_MAP = torch.tensor([-1, -1, 0, 1, -1, -1, 2, 3], dtype=torch.int32)
INPUT_SCALE = torch.tensor(4 / 2688)
GATES: dict[Any, Callable[[torch.Tensor], torch.Tensor]] = {
    MoEActivation.SILU: F.silu,
    MoEActivation.GELU: F.gelu,
    MoEActivation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
}
CLASSES = [VectorDequantExperts, PackedExperts, EmulateExperts]


def _config(**changes: Any) -> FusedMoEConfig:
    given: dict[str, Any] = {
        "num_experts": EXPERTS,
        "experts_per_token": 2,
        "hidden_dim": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_local_experts": EXPERTS,
        "num_logical_experts": EXPERTS,
        "activation": MoEActivation.SILU,
        "device": "cpu",
        "routing_method": RoutingMethodType.Renormalize,
        "moe_parallel_config": FusedMoEParallelConfig.make_no_parallel(),
        "in_dtype": torch.float32,
    }
    return FusedMoEConfig(**given | changes)


class _Case:
    """A layer as the loader leaves it, and the values of its weights."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.layer = torch.nn.Module()
        self.values = {}
        scales = {}
        for name, rows, columns in (("w13", 2 * INTERMEDIATE, HIDDEN), ("w2", HIDDEN, INTERMEDIATE)):
            weight = torch.randn(EXPERTS, rows, columns, generator=generator)
            stored = quantize(weight, weight.abs().amax((-2, -1)) / 2688)
            self.values[name] = dequantize(*stored)
            scales[name] = stored.global_scale
            for part, tensor in (("weight", stored.packed), ("weight_scale", stored.block_scales)):
                self.layer.register_parameter(
                    f"{name}_{part}", torch.nn.Parameter(tensor, requires_grad=False)
                )
        self.quant_config = nvfp4_moe_quant_config(
            g1_alphas=scales["w13"],
            g2_alphas=scales["w2"],
            a1_gscale=1.0 / INPUT_SCALE,
            a2_gscale=1.0 / INPUT_SCALE,
            w1_scale=self.layer.w13_weight_scale,
            w2_scale=self.layer.w2_weight_scale,
        )
        self.x = torch.randn(TOKENS, HIDDEN, generator=generator)

    def run(
        self,
        cls: type[mk.FusedMoEExpertsModular],
        ids: torch.Tensor,
        weights: torch.Tensor,
        *,
        expert_map: torch.Tensor | None = None,
        on_input: bool = False,
        activation: MoEActivation = MoEActivation.SILU,
    ) -> torch.Tensor:
        experts = cls(moe_config=_config(activation=activation), quant_config=self.quant_config)
        experts.process_weights_after_loading(self.layer)
        output = torch.full((TOKENS, HIDDEN), torch.nan)
        experts.apply(
            output=output,
            hidden_states=self.x,
            w1=self.layer.w13_weight,
            w2=self.layer.w2_weight,
            topk_weights=weights,
            topk_ids=ids,
            activation=activation,
            global_num_experts=EXPERTS,
            expert_map=expert_map,
            a1q_scale=None,
            a2_scale=None,
            workspace13=torch.empty(0),
            workspace2=torch.empty(0),
            expert_tokens_meta=None,
            apply_router_weight_on_input=on_input,
        )
        return output

    def expected(
        self,
        ids: torch.Tensor,
        weights: torch.Tensor | None,
        *,
        activation: MoEActivation = MoEActivation.SILU,
        quantize_activations: bool = False,
    ) -> torch.Tensor:
        """Do the same with a loop over tokens; `ids` are this rank's, -1 for none."""

        def enter(x: torch.Tensor) -> torch.Tensor:
            return fake_quantize_activations(x, INPUT_SCALE) if quantize_activations else x

        out = torch.zeros(TOKENS, HIDDEN)
        for token, slot in (ids >= 0).nonzero().tolist():
            expert = int(ids[token, slot])
            gate, up = (self.values["w13"][expert] @ enter(self.x[token])).chunk(2)
            hidden = GATES[activation](gate) * up
            weight = 1.0 if weights is None else weights[token, slot]
            out[token] += weight * (self.values["w2"][expert] @ enter(hidden))
        return out


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-3)


def _routing(experts: int, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(TOKENS, experts, generator=generator)
    weights, ids = scores.topk(top, dim=-1)
    return ids.to(torch.int32), weights


@pytest.mark.parametrize("activation", GATES)
@pytest.mark.parametrize("cls", CLASSES)
def test_experts(cls: type[mk.FusedMoEExpertsModular], activation: MoEActivation) -> None:
    ids, weights = _routing(EXPERTS, 2)
    case = _Case()
    expected = case.expected(ids, weights, activation=activation, quantize_activations=cls is EmulateExperts)
    _close(case.run(cls, ids, weights, activation=activation), expected)


@pytest.mark.parametrize("cls", CLASSES)
def test_expert_parallel_skips_foreign_experts(cls: type[mk.FusedMoEExpertsModular]) -> None:
    ids, weights = _routing(GLOBAL_EXPERTS, 2)
    local = EXPERT_MAP[ids.long()]
    assert (local < 0).all(1).any(), "the case needs a token that has no expert here"
    case = _Case()
    expected = case.expected(local, weights, quantize_activations=cls is EmulateExperts)
    _close(case.run(cls, ids, weights, expert_map=EXPERT_MAP), expected)


@pytest.mark.parametrize("expert_map", [None, EXPERT_MAP], ids=["one rank", "expert parallel"])
@pytest.mark.parametrize("cls", CLASSES)
def test_weights_on_input_are_not_applied_again(
    cls: type[mk.FusedMoEExpertsModular], expert_map: torch.Tensor | None
) -> None:
    """vLLM's prepare step multiplies the input itself, with one expert per token only."""
    ids, weights = _routing(EXPERTS if expert_map is None else GLOBAL_EXPERTS, 1)
    local = ids if expert_map is None else expert_map[ids.long()]
    case = _Case()
    expected = case.expected(local, None, quantize_activations=cls is EmulateExperts)
    _close(case.run(cls, ids, weights, expert_map=expert_map, on_input=True), expected)


@pytest.mark.parametrize(
    ("mode", "activations", "expected"),
    [
        (Mode.PACKED, kNvfp4Dynamic, PackedExperts),
        (Mode.PACKED, None, PackedExperts),
        (Mode.EMULATE, kNvfp4Dynamic, EmulateExperts),
        (Mode.EMULATE, None, PackedExperts),
    ],
)
def test_weight_only_layers_are_not_emulated(
    mode: Mode, activations: object, expected: type[mk.FusedMoEExperts]
) -> None:
    """vLLM takes the first class that fits. That hangs on the layer, not on a checkpoint's format."""
    standard = mk.FusedMoEActivationFormat.Standard
    chosen = next(
        cls
        for cls in cpu_experts.EXPERTS[mode]
        if cls.is_supported_config(cls, _config(), kNvfp4Static, activations, standard)[0]
    )
    assert chosen is expected


def test_a_layer_needs_no_configuration_of_its_own() -> None:
    """compressed-tensors' layers have one without the name of an algorithm."""
    ids, weights = _routing(EXPERTS, 2)
    case = _Case()
    assert not hasattr(case.layer, "quant_config")
    _close(case.run(EmulateExperts, ids, weights), case.expected(ids, weights, quantize_activations=True))


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_emulate_refuses_missing_input_scales(scale: float) -> None:
    case = _Case()
    case.quant_config._a1.alpha_or_gscale = torch.tensor(1.0) / torch.tensor(scale)
    experts = EmulateExperts(moe_config=_config(), quant_config=case.quant_config)
    with pytest.raises(ValueError, match="w13_input_scale"):
        experts.process_weights_after_loading(case.layer)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"activation": MoEActivation.SWIGLUSTEP}, "swiglustep activation"),
        ({"activation": MoEActivation.SWIGLUOAI}, "swigluoai activation"),
        ({"swiglu_limit": 7.0}, "swiglu_limit"),
        ({"has_bias": True}, "biases"),
    ],
)
@pytest.mark.parametrize("cls", CLASSES)
def test_refusals(cls: type[mk.FusedMoEExpertsModular], changes: dict[str, Any], reason: str) -> None:
    supported, why = cls.is_supported_config(
        cls, _config(**changes), kNvfp4Static, kNvfp4Dynamic, mk.FusedMoEActivationFormat.Standard
    )
    assert not supported
    assert why is not None
    assert reason in why


@pytest.mark.parametrize("cls", CLASSES)
def test_accepts_nvfp4_alone(cls: type[mk.FusedMoEExpertsModular]) -> None:
    standard = mk.FusedMoEActivationFormat.Standard
    assert cls.is_supported_config(cls, _config(), kNvfp4Static, kNvfp4Dynamic, standard) == (True, None)
    weight_only = cls.is_supported_config(cls, _config(), kNvfp4Static, None, standard)[0]
    assert weight_only == (cls is not EmulateExperts)
    for activations in (kNvfp4Dynamic, None):
        assert not cls.is_supported_config(cls, _config(), None, activations, standard)[0]
    assert not cls.is_supported_config(cls, _config(), kNvfp4Static, kFp8DynamicTokenSym, standard)[0]


def test_local_expert_ids() -> None:
    ids = torch.tensor([[0, 2], [7, -1]], dtype=torch.int32)
    assert local_expert_ids(ids, None) is ids
    assert local_expert_ids(ids, EXPERT_MAP).tolist() == [[-1, 0], [3, -1]]
