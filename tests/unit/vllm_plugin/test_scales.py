"""Scales between loader and kernels: fused parts with scales of their own; missing input scales."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.model_executor.layers.fused_moe.activation import MoEActivation

from gb10.nvfp4 import dequantize, quantize
from gb10.vllm_plugin.cpu.experts import EmulateExperts, PackedExperts, VectorDequantExperts
from gb10.vllm_plugin.cpu.linear import DequantLinearKernel, EmulateLinearKernel, PackedLinearKernel
from gb10.vllm_plugin.cpu.ops import nvfp4_experts
from gb10.vllm_plugin.refusal import Refused
from gb10.vllm_plugin.scales import activations, weights
from gb10.vllm_plugin.scales.forms import FORMS, Form, rounds_activations

K = 64
ROWS = [48, 16, 32]
EXPERTS, HIDDEN, INTERMEDIATE, TOKENS = 4, 64, 32, 9
LINEAR = [form for form in FORMS if not form.experts]
MOE = [form for form in FORMS if form.experts]
SPLITS = {"powers of two": (1.0, 0.5, 4.0), "any numbers": (1.0, 0.7, 3.3)}


def name_of(form: object) -> str:
    return form.name if isinstance(form, Form) else str(form)


class _OneScaleKernel:
    """A kernel as those of vLLM for GPUs: one global scale for the whole layer."""

    def process_weights_after_loading(self, layer: Any) -> None:
        layer.values = dequantize(layer.weight, layer.weight_scale, layer.weight_global_scale)

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        out = F.linear(x, layer.values)
        return out if bias is None else out + bias


class MarlinExperts:
    """Stands for vLLM's: weight-only, one scale for each expert's gate and up."""


class CutlassExperts:
    """Stands for vLLM's: W4A4, one scale for each expert's gate and up."""


def parameter(tensor: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor, requires_grad=False)


def unmade(kernel: Any) -> Any:
    """A kernel as it is before vLLM has configured it."""
    return kernel.__new__(kernel)


def weight(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stored(form: Form, scales: torch.Tensor) -> torch.nn.Parameter:
    return parameter(scales.reciprocal() if form.inverse else scales.clone())


def linear_layer(form: Form, split: tuple[float, ...]) -> tuple[Any, torch.Tensor]:
    """A layer as the loader leaves it, and the values of its weight; block scales between 1 and 100 or so."""
    parts = [weight(part, rows, K) for part, rows in enumerate(ROWS)]
    kept = [quantize(w, 4.4 / 600 * ratio) for w, ratio in zip(parts, split, strict=True)]
    layer: Any = torch.nn.Module()
    layer.prefix, layer.logical_widths = "model.layers.3.qkv_proj", ROWS
    layer.weight = parameter(torch.cat([one.packed for one in kept]))
    layer.weight_scale = parameter(torch.cat([one.block_scales for one in kept]))
    setattr(layer, form.weight, stored(form, torch.stack([one.global_scale for one in kept])))
    scales = form.scales(layer, form.weight)
    values = [
        dequantize(one.packed, one.block_scales, scale) for one, scale in zip(kept, scales, strict=True)
    ]
    return layer, torch.cat(values)


def process_linear(form: Form, method: Any, layer: Any, *, carry: bool = True) -> weights.Carried:
    """What vLLM's methods do with the global scale: the largest one, of reciprocals too."""
    carried = weights.carry_linear(form, method, layer) if carry else weights.Carried()
    largest = getattr(layer, form.weight).max()
    if hasattr(layer, form.weight):
        delattr(layer, form.weight)
    layer.weight_global_scale = parameter(1.0 / largest if form.inverse else largest.clone())
    method.kernel.process_weights_after_loading(layer)
    return carried


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("kernel", [_OneScaleKernel, PackedLinearKernel, DequantLinearKernel])
@pytest.mark.parametrize("form", LINEAR, ids=name_of)
def test_each_part_of_a_linear_layer_keeps_its_scale(
    form: Form, kernel: type, split: tuple[float, ...]
) -> None:
    layer, values = linear_layer(form, split)
    layer.params_dtype = torch.float32
    method = SimpleNamespace(kernel=unmade(kernel))
    carried = process_linear(form, method, layer)
    exact = split == SPLITS["powers of two"]
    assert carried == (weights.Carried(shared=3) if exact else weights.Carried(own=3))
    if kernel is PackedLinearKernel or (exact and kernel is _OneScaleKernel):
        # The very numbers.
        found = dequantize(layer.weight, layer.weight_scale, layer.weight_global_scale)
        assert torch.equal(found, values)
    x, bias = weight(9, 5, K), weight(10, sum(ROWS))
    for given in (None, bias):
        expected = F.linear(x, values, given)
        torch.testing.assert_close(method.kernel.apply_weights(layer, x, given), expected)


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("form", LINEAR, ids=name_of)
def test_control_one_scale_for_all_parts_is_wrong(form: Form, split: tuple[float, ...]) -> None:
    layer, values = linear_layer(form, split)
    method = SimpleNamespace(kernel=_OneScaleKernel())
    process_linear(form, method, layer, carry=False)
    x = weight(9, 5, K)
    expected, found = F.linear(x, values), method.kernel.apply_weights(layer, x)
    assert float((found - expected).norm() / expected.norm()) > 0.2


def test_a_layer_of_one_scale_is_left_alone() -> None:
    form = LINEAR[0]
    layer, _ = linear_layer(form, (1.0, 1.0, 1.0))
    getattr(layer, form.weight).data.fill_(0.25)
    before = layer.weight_scale.clone().view(torch.uint8)
    method = SimpleNamespace(kernel=_OneScaleKernel())
    assert process_linear(form, method, layer) == weights.Carried()
    assert type(method.kernel) is _OneScaleKernel
    assert torch.equal(layer.weight_scale.view(torch.uint8), before)


def test_the_output_of_a_one_scale_kernel_compiles_in_one_graph() -> None:
    form = LINEAR[0]
    layer, values = linear_layer(form, SPLITS["any numbers"])
    method = SimpleNamespace(kernel=_OneScaleKernel())
    process_linear(form, method, layer)
    scaled = torch.compile(
        lambda x: method.kernel.apply_weights(layer, x), backend="eager", fullgraph=True, dynamic=True
    )
    x = weight(9, 5, K)
    torch.testing.assert_close(scaled(x), F.linear(x, values))


def test_loading_again_starts_from_the_kernel() -> None:
    form = LINEAR[0]
    method = SimpleNamespace(kernel=_OneScaleKernel())
    for split in (SPLITS["any numbers"], (1.0, 3.1, 0.9), SPLITS["powers of two"]):
        layer, values = linear_layer(form, split)
        process_linear(form, method, layer)
        x = weight(9, 5, K)
        torch.testing.assert_close(method.kernel.apply_weights(layer, x), F.linear(x, values))
    assert type(method.kernel) is _OneScaleKernel


def moe_method(experts_cls: type, *, use_a16: bool = False, **config: Any) -> Any:
    moe = {
        "swiglu_limit": None,
        "has_bias": False,
        "moe_parallel_config": SimpleNamespace(use_ep=False),
    }
    return SimpleNamespace(experts_cls=experts_cls, use_a16=use_a16, moe=SimpleNamespace(**moe | config))


class _Experts:
    """A layer of experts as the loader leaves it, and the values of its weights."""

    def __init__(self, form: Form, ratios: list[float]) -> None:
        """`ratios`: for each expert, the up projection's global scale by the gate's."""
        self.form = form
        layer: Any = torch.nn.Module()
        layer.layer_name, layer.activation = "model.layers.2.mlp.experts", MoEActivation.SILU
        layer.local_num_experts = EXPERTS
        w = {"gate": weight(1, EXPERTS, INTERMEDIATE, HIDDEN), "up": weight(2, EXPERTS, INTERMEDIATE, HIDDEN)}
        w["down"] = weight(3, EXPERTS, HIDDEN, INTERMEDIATE)
        scales = {name: one.abs().amax((1, 2)) / 600 for name, one in w.items()}
        scales["up"] = scales["gate"] * torch.tensor(ratios)
        kept = {name: quantize(one, scales[name]) for name, one in w.items()}
        layer.w13_weight = parameter(torch.cat([kept["gate"].packed, kept["up"].packed], dim=1))
        layer.w13_weight_scale = parameter(
            torch.cat([kept["gate"].block_scales, kept["up"].block_scales], dim=1)
        )
        layer.w2_weight = parameter(kept["down"].packed)
        layer.w2_weight_scale = parameter(kept["down"].block_scales)
        both = torch.stack([scales["gate"], scales["up"]], dim=1)
        setattr(layer, f"w13_{form.weight}", stored(form, both))
        setattr(layer, f"w2_{form.weight}", stored(form, scales["down"]))
        setattr(layer, f"w13_{form.activation}", stored(form, torch.full((EXPERTS, 2), 0.01)))
        inputs = torch.linspace(0.01, 0.02, EXPERTS)
        setattr(layer, f"w2_{form.activation}", stored(form, inputs))
        self.layer, self.inputs = layer, form.scales(layer, f"w2_{form.activation}")
        both = form.scales(layer, f"w13_{form.weight}")
        self.w13 = dequantize(
            layer.w13_weight.data,
            layer.w13_weight_scale.data,
            both.repeat_interleave(INTERMEDIATE, dim=1),
        )
        self.w2 = dequantize(
            layer.w2_weight.data, layer.w2_weight_scale.data, form.scales(layer, f"w2_{form.weight}")
        )

    def scale_for_vllm(self) -> torch.Tensor:
        """What vLLM's methods take for both halves: the first column."""
        stored: torch.Tensor = getattr(self.layer, f"w13_{self.form.weight}")[:, 0].contiguous()
        return 1.0 / stored if self.form.inverse else stored

    def run(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Run tokens through vLLM's idea of the layer, without rounding activations."""
        layer = self.layer
        out: torch.Tensor = nvfp4_experts(
            x,
            layer.w13_weight,
            layer.w13_weight_scale,
            self.scale_for_vllm(),
            layer.w2_weight,
            layer.w2_weight_scale,
            self.form.scales(layer, f"w2_{self.form.weight}"),
            None,
            None,
            ids,
            None,
            "silu",
        )
        return out

    def expected(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        rows = []
        for token, expert in enumerate(ids.flatten().tolist()):
            gate, up = (self.w13[expert] @ x[token]).chunk(2)
            rows.append(self.w2[expert] @ (F.silu(gate) * up))
        return torch.stack(rows)


TOKEN_INPUT = weight(7, TOKENS, HIDDEN)
TOKEN_EXPERTS = torch.arange(TOKENS, dtype=torch.int32).remainder(EXPERTS).unsqueeze(1)
RATIOS = {"powers of two": [1.0, 2.0, 0.25, 1.0], "any numbers": [1.0, 2.0, 0.7, 3.3]}


@pytest.mark.parametrize("ratios", RATIOS.values(), ids=RATIOS)
@pytest.mark.parametrize("runs", [PackedExperts, VectorDequantExperts, MarlinExperts, CutlassExperts])
@pytest.mark.parametrize("form", MOE, ids=name_of)
def test_gate_and_up_of_an_expert_keep_their_scales(form: Form, runs: type, ratios: list[float]) -> None:
    case = _Experts(form, ratios)
    carried = weights.carry_experts(form, moe_method(runs), case.layer)
    exact = ratios == RATIOS["powers of two"]
    assert carried == (weights.Carried(shared=4) if exact else weights.Carried(shared=2, own=4))
    found = case.run(TOKEN_INPUT, TOKEN_EXPERTS)
    torch.testing.assert_close(found, case.expected(TOKEN_INPUT, TOKEN_EXPERTS), rtol=1e-4, atol=1e-3)
    if exact or runs in (PackedExperts, VectorDequantExperts):
        # The very numbers.
        scales = case.scale_for_vllm()
        again = dequantize(case.layer.w13_weight.data, case.layer.w13_weight_scale.data, scales)
        assert torch.equal(again, case.w13)


@pytest.mark.parametrize("ratios", RATIOS.values(), ids=RATIOS)
def test_control_the_gates_scale_for_both_is_wrong(ratios: list[float]) -> None:
    case = _Experts(MOE[0], ratios)
    found, expected = case.run(TOKEN_INPUT, TOKEN_EXPERTS), case.expected(TOKEN_INPUT, TOKEN_EXPERTS)
    assert float((found - expected).norm() / expected.norm()) > 0.2


@pytest.mark.parametrize("form", MOE, ids=name_of)
def test_the_input_scale_of_the_down_projection_follows(form: Form) -> None:
    """What vLLM rounds before the down projection is smaller by the ratio that went through."""
    case = _Experts(form, [1.0, 1.0, 0.7, 3.3])
    weights.carry_experts(form, moe_method(CutlassExperts), case.layer)
    expected = case.inputs / torch.tensor([1.0, 1.0, 0.7, 3.3])
    torch.testing.assert_close(form.scales(case.layer, f"w2_{form.activation}"), expected)
    weight_only = _Experts(form, [1.0, 1.0, 0.7, 3.3])
    weights.carry_experts(form, moe_method(MarlinExperts, use_a16=True), weight_only.layer)
    assert torch.equal(form.scales(weight_only.layer, f"w2_{form.activation}"), weight_only.inputs)


def test_the_input_scales_of_all_ranks_are_in_one_table() -> None:
    """With expert parallelism some backends have the input scales of other ranks' experts too."""
    form = MOE[0]
    case = _Experts(form, [1.0, 2.1, 0.7, 3.3])
    # This rank has the experts 2, 3, 6 and 7 of 8, in another order.
    case.layer._expert_map = torch.tensor([-1, -1, 1, 0, -1, -1, 3, 2])
    getattr(case.layer, f"w2_{form.activation}").data = torch.full((8,), 0.5)
    weights.carry_experts(form, moe_method(CutlassExperts), case.layer)
    found = getattr(case.layer, f"w2_{form.activation}")
    expected = torch.full((8,), 0.5)
    expected[[3, 2, 7, 6]] /= torch.tensor([1.0, 2.1, 0.7, 3.3])
    torch.testing.assert_close(found.data, expected)


@pytest.mark.parametrize(
    ("layer_has", "config_has"),
    [
        ({"activation": MoEActivation.SWIGLUOAI}, {}),
        ({"swiglu_limit": 7.0}, {}),
        ({"swiglu_beta": 1.0}, {}),
        ({}, {"swiglu_limit": 7.0}),
        ({}, {"has_bias": True}),
    ],
)
def test_refused_where_nothing_can_carry_it(layer_has: dict[str, Any], config_has: dict[str, Any]) -> None:
    def case(ratio: float) -> Any:
        layer = _Experts(MOE[0], [1.0, ratio, 1.0, 1.0]).layer
        for name, value in layer_has.items():
            setattr(layer, name, value)
        return layer

    method = moe_method(CutlassExperts, **config_has)
    with pytest.raises(Refused, match=r"model.layers.2.mlp.experts: gate and up projection .* one scale"):
        weights.carry_experts(MOE[0], method, case(0.7))
    # A power of two needs no activation to go through.
    assert weights.carry_experts(MOE[0], method, case(0.5)) == weights.Carried(shared=2)


def test_experts_without_a_gate_have_one_part() -> None:
    layer = _Experts(MOE[0], [1.0] * 4).layer
    layer.w13_weight_scale_2.data = torch.rand(EXPERTS, 1)
    assert weights.carry_experts(MOE[0], moe_method(CutlassExperts), layer) == weights.Carried()


NAN = float("nan")


def moe_inputs(form: Form, w13: list[list[float]], w2: list[float]) -> Any:
    layer: Any = torch.nn.Module()
    layer.layer_name, layer.local_num_experts = "model.layers.1.mlp.experts", len(w2)
    setattr(layer, f"w13_{form.activation}", stored(form, torch.tensor(w13)))
    setattr(layer, f"w2_{form.activation}", stored(form, torch.tensor(w2)))
    return layer


@pytest.mark.parametrize("form", MOE, ids=name_of)
def test_missing_input_scales_of_experts_are_the_largest_of_the_others(form: Form) -> None:
    w13 = [[0.25, 0.5], [NAN, NAN], [NAN, 0.25], [1.0, 1.0]]
    layer = moe_inputs(form, w13, [0.5, NAN, 0.25, NAN])
    assert activations.settle(form, moe_method(CutlassExperts), layer) == 2
    assert form.scales(layer, f"w2_{form.activation}").tolist() == [0.5, 0.5, 0.25, 0.5]
    # Gate and up have the same input: a part takes the other's.
    expected = [[0.25, 0.5], [1.0, 1.0], [0.25, 0.25], [1.0, 1.0]]
    assert form.scales(layer, f"w13_{form.activation}").tolist() == expected


@pytest.mark.parametrize("form", MOE, ids=name_of)
@pytest.mark.parametrize(
    ("runs", "use_a16", "refused"),
    [
        (CutlassExperts, False, True),
        (EmulateExperts, False, True),
        (PackedExperts, False, False),
        (VectorDequantExperts, False, False),
        (MarlinExperts, False, False),
        (CutlassExperts, True, False),
        (EmulateExperts, True, False),
    ],
)
def test_a_layer_without_input_scales(form: Form, runs: type, use_a16: bool, refused: bool) -> None:
    """Refused where they are needed; elsewhere nothing reads them and they are a number all the same."""
    layer = moe_inputs(form, [[NAN, NAN]] * 3, [NAN] * 3)
    method = moe_method(runs, use_a16=use_a16)
    if refused:
        with pytest.raises(Refused, match=rf"model.layers.1.mlp.experts: .* no {form.activation}"):
            activations.settle(form, method, layer)
    else:
        assert activations.settle(form, method, layer) == 0
        assert form.scales(layer, f"w13_{form.activation}").tolist() == [[1.0, 1.0]] * 3
        assert form.scales(layer, f"w2_{form.activation}").tolist() == [1.0] * 3


def test_other_ranks_know_the_scales_that_this_one_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expert parallelism: all experts of this rank may be ones that calibration missed."""
    import vllm.distributed.parallel_state as state

    monkeypatch.setattr(state, "get_ep_group", lambda: SimpleNamespace(device_group="experts"))
    asked = []

    def all_reduce(tensor: torch.Tensor, op: Any, group: str) -> None:
        asked.append((op, group))
        tensor.clamp_(min=0.75)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    form = MOE[0]
    layer = moe_inputs(form, [[NAN, NAN]] * 2, [NAN, 0.25])
    method = moe_method(CutlassExperts, moe_parallel_config=SimpleNamespace(use_ep=True))
    activations.settle(form, method, layer)
    assert asked == [(torch.distributed.ReduceOp.MAX, "experts")] * 2
    assert form.scales(layer, f"w13_{form.activation}").tolist() == [[0.75, 0.75]] * 2
    assert form.scales(layer, f"w2_{form.activation}").tolist() == [0.75, 0.25]


def linear_inputs(form: Form, scales: list[float]) -> Any:
    layer: Any = torch.nn.Module()
    layer.prefix = "model.layers.0.qkv_proj"
    setattr(layer, form.activation, stored(form, torch.tensor(scales)))
    return layer


@pytest.mark.parametrize("form", MOE, ids=name_of)
@pytest.mark.parametrize("scale", [0.0, -0.5, float("inf")])
def test_what_is_no_scale_is_refused(form: Form, scale: float) -> None:
    layer = moe_inputs(form, [[0.5, 0.5], [NAN, NAN]], [0.5, scale])
    with pytest.raises(Refused, match=rf"w2_{form.activation} is .* scales are positive"):
        activations.settle(form, moe_method(CutlassExperts), layer)


@pytest.mark.parametrize("form", LINEAR, ids=name_of)
def test_parts_of_a_linear_layer_take_the_largest_input_scale(form: Form) -> None:
    """It clips nothing. vLLM takes the largest reciprocal of compressed-tensors', the smallest scale."""
    method = SimpleNamespace(kernel=unmade(EmulateLinearKernel))
    layer = linear_inputs(form, [0.25, 1.0, 0.5])
    assert activations.settle(form, method, layer) == 0
    assert form.scales(layer, form.activation).tolist() == [1.0, 1.0, 1.0]
    layer = linear_inputs(form, [NAN, 0.25, 0.5])
    assert activations.settle(form, method, layer) == 1
    assert form.scales(layer, form.activation).tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("form", LINEAR, ids=name_of)
def test_a_linear_layer_without_input_scales(form: Form) -> None:
    layer = linear_inputs(form, [NAN, NAN])
    with pytest.raises(Refused, match=r"model\.layers\.0\.qkv_proj"):
        method = SimpleNamespace(kernel=unmade(EmulateLinearKernel))
        activations.settle(form, method, layer)
    method = SimpleNamespace(kernel=unmade(PackedLinearKernel))
    assert activations.settle(form, method, layer) == 0
    assert form.scales(layer, form.activation).tolist() == [1.0, 1.0]


def test_a_weight_only_linear_layer_keeps_the_scale_that_vllm_drops() -> None:
    form = LINEAR[0]
    spec = SimpleNamespace(activation=None)
    kernel = unmade(EmulateLinearKernel)
    layer = linear_inputs(form, [NAN, NAN])
    assert activations.settle(form, SimpleNamespace(kernel=kernel, spec=spec), layer) == 0
    assert bool(form.scales(layer, form.activation).isnan().all())


def test_who_rounds_activations() -> None:
    def linear(kernel: type, **more: Any) -> Any:
        return SimpleNamespace(kernel=unmade(kernel), **more)

    assert rounds_activations(linear(EmulateLinearKernel))
    assert not rounds_activations(linear(PackedLinearKernel))
    assert not rounds_activations(linear(DequantLinearKernel))
    assert not rounds_activations(linear(EmulateLinearKernel, use_a16=True))
    inner = weights.PartScales(unmade(EmulateLinearKernel), torch.ones(1), [2])
    assert rounds_activations(SimpleNamespace(kernel=inner))
    from vllm.model_executor.kernels.linear.nvfp4.cutlass import CutlassNvFp4LinearKernel
    from vllm.model_executor.kernels.linear.nvfp4.marlin import MarlinNvFp4LinearKernel

    assert rounds_activations(linear(CutlassNvFp4LinearKernel))
    assert not rounds_activations(linear(MarlinNvFp4LinearKernel))


REAL_LAYERS = """
import gc, sys
gc.disable()
import torch
import gb10.vllm_plugin as plugin
import vllm.envs
from vllm.config import LoadConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor import parameter
from vllm.model_executor.layers import linear as layers
from vllm.model_executor.layers.quantization import get_quantization_config
from gb10.nvfp4 import dequantize, quantize

# There are no process groups here.
for module in (parameter, layers):
    module.get_tensor_model_parallel_rank = lambda: 0
    module.get_tensor_model_parallel_world_size = lambda: 1
plugin.register()
plugin.register()
numbers = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
compressed = {
    "quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "ignore": [],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": numbers | {"dynamic": False},
                                  "input_activations": numbers | {"dynamic": "local"}}},
}
modelopt = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": []}
generator = torch.Generator().manual_seed(0)
x = torch.randn(3, 64, generator=generator)
for name, config, inverse in (("modelopt_fp4", modelopt, False), ("compressed-tensors", compressed, True)):
    for ratio in (1.0, 0.5, 0.7):
        for load_format in ("auto", "dummy"):
            with set_current_vllm_config(VllmConfig(load_config=LoadConfig(load_format=load_format))):
                made = get_quantization_config(name).from_config(config)
                layer = layers.MergedColumnParallelLinear(
                    64, [32, 16], bias=False, quant_config=made, prefix=f"mlp.{name}", disable_tp=True,
                    params_dtype=torch.float32,
                )
                inputs = layer.input_global_scale if inverse else layer.input_scale
                assert bool(inputs.isnan().all()) == (load_format == "auto")
                values = []
                for part, rows in enumerate((32, 16)):
                    weight = torch.randn(rows, 64, generator=generator)
                    kept = quantize(weight, 4.4 / 600 * ratio**part)
                    scale = kept.global_scale.reciprocal() if inverse else kept.global_scale
                    values.append(dequantize(kept.packed, kept.block_scales,
                                             1.0 / scale if inverse else scale))
                    codes, name_2 = ("weight_packed", "weight_global_scale") if inverse else (
                        "weight", "weight_scale_2")
                    for where, tensor in ((codes, kept.packed), ("weight_scale", kept.block_scales),
                                          (name_2, scale.reshape(1))):
                        loaded = getattr(layer, where)
                        loaded.weight_loader(loaded, tensor, part)
                first = torch.tensor([8.0 if inverse else 0.125])
                inputs.weight_loader(inputs, first, 0)
                if load_format == "dummy":
                    inputs.data.fill_(1.0)
                layer.quant_method.process_weights_after_loading(layer)
                found = layer.quant_method.apply(layer, x)
            expected = torch.nn.functional.linear(x, torch.cat(values))
            right = torch.allclose(found, expected, rtol=1e-4, atol=1e-3)
            assert right == (load_format == "auto" or ratio == 1.0), (name, ratio, load_format)
            if load_format == "auto":
                assert layer.input_global_scale.item() == 0.125, (name, layer.input_global_scale)
assert vllm.envs.compile_factors()["GB10_OWN_SCALES"] == "mlp.modelopt_fp4,mlp.compressed-tensors"
"""


@pytest.mark.parametrize("mode", ["dequant", "packed"])
def test_vllms_own_layers(mode: str) -> None:
    """vLLM's layer and loader, ModelOpt and compressed-tensors; a dummy load is the control."""
    done = subprocess.run(
        [sys.executable, "-c", REAL_LAYERS],
        env=os.environ | {"GB10_CPU_NVFP4_MODE": mode},
        capture_output=True,
        text=True,
        timeout=200 * int(os.environ.get("GB10_TEST_SLOWNESS", "1")),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
