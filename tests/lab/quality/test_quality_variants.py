"""What each row changes, and what it leaves."""

import math
from typing import Any

import pytest
import torch

from gb10 import fp8
from gb10.checkpoint import modelopt
from gb10.nvfp4 import dequantize
from gb10_lab.quality.variants import Format, Variant, fp8_kv_cache, w4a4
from gb10_lab.testbed.quantize import quantize_tensors

EXPERT = "model.layers.2.mlp.experts.1.down_proj.weight"
SHARED = "model.layers.0.mlp.shared_expert.up_proj.weight"
OUTPUT = ("model.layers.0.linear_attn.out_proj.weight", "model.layers.3.self_attn.o_proj.weight")
DENSE = (
    "model.layers.0.linear_attn.in_proj_qkvz.weight",
    "model.layers.1.linear_attn.in_proj_ba.weight",
    "model.layers.3.self_attn.q_proj.weight",
    "model.layers.3.self_attn.k_proj.weight",
    "model.layers.3.self_attn.v_proj.weight",
)
HEAD = "lm_head.weight"
BOTH = {"fp8-dense-head", "nvfp4-dense-head", "nvfp4-dense-head-search"}
NEVER = (
    "model.embed_tokens.weight",
    "model.norm.weight",
    "model.layers.0.mlp.gate.weight",
    "model.layers.0.mlp.shared_expert_gate.weight",
    "model.layers.0.linear_attn.conv1d.weight",
    "model.layers.0.linear_attn.A_log",
)


@pytest.fixture(scope="module")
def rows(small_model: Any) -> dict[str, Variant]:
    made: dict[str, Variant] = small_model.variants()
    return made


def changed(rows: dict[str, Variant], key: str, name: str) -> bool:
    return not torch.equal(rows[key].tensors[name], rows["bf16"].tensors[name])


@pytest.mark.parametrize("name", [EXPERT, SHARED, *OUTPUT, *DENSE, HEAD, *NEVER])
def test_a_row_changes_the_weights_that_its_name_says(name: str, rows: dict[str, Variant]) -> None:
    found = {key for key in rows if changed(rows, key, name)}
    if name in (EXPERT, SHARED, *OUTPUT):
        assert found == set(rows) - {"bf16", "bf16-fp8-kv"}
    elif name in DENSE:
        assert found == {"fp8-dense", "nvfp4-dense", "nvfp4-dense-search"} | BOTH
    elif name == HEAD:
        assert found == BOTH
    else:
        assert found == set()


def test_rows_hold_the_main_model_in_float32_that_bf16_can_hold(
    rows: dict[str, Variant], small_model: Any
) -> None:
    names = {name for name in small_model.tensors if not name.startswith("mtp.")}
    assert len(names) < len(small_model.tensors)
    for key, row in rows.items():
        assert row.tensors.keys() == names
        assert {tensor.dtype for tensor in row.tensors.values()} == {torch.float32}
        in_fp8 = {*DENSE, HEAD} if key.startswith("fp8-dense") else set()
        for name in {EXPERT, SHARED, *OUTPUT, *DENSE, HEAD} - in_fp8:
            tensor = row.tensors[name]
            assert torch.equal(tensor.to(torch.bfloat16).to(torch.float32), tensor), (key, name)


def test_shipped_weights_are_those_of_the_checkpoint(rows: dict[str, Variant], small_model: Any) -> None:
    stored = quantize_tensors(
        small_model.tensors, small_model.amax | mtp_amax(small_model), modelopt.AS_SHIPPED
    )
    packed, scales, global_scale = (stored[EXPERT + end] for end in ("", "_scale", "_scale_2"))
    weight = dequantize(packed, scales, global_scale, dtype=torch.bfloat16)
    assert torch.equal(rows["shipped"].tensors[EXPERT], weight.to(torch.float32))


def test_searched_rows_are_nearer_and_as_large(rows: dict[str, Variant]) -> None:
    for plain, searched, names in (
        ("shipped", "shipped-search", [EXPERT, SHARED, *OUTPUT]),
        ("nvfp4-dense", "nvfp4-dense-search", DENSE),
        ("nvfp4-dense-head", "nvfp4-dense-head-search", [*DENSE, HEAD]),
    ):
        assert rows[plain].bytes == rows[searched].bytes
        for name in names:
            before, after = (
                float((rows[key].tensors[name] - rows["bf16"].tensors[name]).norm())
                for key in (plain, searched)
            )
            assert after < 0.95 * before, name


def mtp_amax(small_model: Any) -> dict[str, float]:
    return {site.replace("model.layers.3", "mtp.layers.0"): 1.0 for site in small_model.amax}


def test_2_of_4_keeps_two_of_each_four_and_says_what_it_dropped(rows: dict[str, Variant]) -> None:
    sparse, shipped = rows["sparse24"], rows["shipped"]
    groups = sparse.tensors[EXPERT].unflatten(-1, (-1, 4))
    assert int((groups != 0).sum(-1).max()) == 2
    kept = groups != 0
    assert torch.equal(groups[kept], shipped.tensors[EXPERT].unflatten(-1, (-1, 4))[kept])
    assert torch.equal(sparse.tensors[SHARED], shipped.tensors[SHARED])
    assert sparse.dropped is not None
    routed = [name for name in sparse.tensors if ".experts." in name]
    assert sparse.dropped.groups * 4 == sum(sparse.tensors[name].numel() for name in routed)
    energy = sum(float(shipped.tensors[name].double().square().sum()) for name in routed)
    left = sum(float(sparse.tensors[name].double().square().sum()) for name in routed)
    assert sparse.dropped.share_of_energy_dropped == pytest.approx(1 - left / energy, rel=1e-3)


def test_fp8_rows_are_within_half_a_step_and_reach_the_largest_value() -> None:
    weight = (
        torch.randn(40, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 40)[:, None]
    )
    rounded = fp8.dequantize(*fp8.quantize_rows(weight))
    amax = weight.abs().amax(-1, keepdim=True)
    # 3 mantissa bits: half a step is 1/16 of the number; below 2^-6 of the scale, half of 2^-9 of it.
    assert bool(
        ((rounded - weight).abs() <= torch.maximum(weight.abs() / 16, amax / 448 * 2**-10) * 1.0001).all()
    )
    assert torch.allclose(rounded.abs().amax(-1, keepdim=True), amax, rtol=1e-6)
    assert not torch.equal(rounded, weight)
    assert torch.equal(fp8.dequantize(*fp8.quantize_rows(torch.zeros(2, 16))), torch.zeros(2, 16))


def test_fp8_cache_rounds_and_saturates_only_keys_and_values() -> None:
    x = torch.tensor([0.3, -500.0, 17.0, 1e-4])
    for part in "kv":
        rounded = fp8_kv_cache(f"model.layers.3.self_attn.{part}_cache", x)
        assert rounded.tolist() == [0.3125, -448.0, 16.0, 0.0]
    assert fp8_kv_cache("model.layers.3.self_attn.qkv_proj", x) is x


def test_w4a4_rounds_the_inputs_of_exactly_the_modules_that_have_an_input_scale(small_model: Any) -> None:
    site = w4a4(small_model.amax)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    rounded = {name for name in small_model.amax if not torch.equal(site(name, x), x)}
    main = {name: tensor for name, tensor in small_model.tensors.items() if not name.startswith("mtp.")}
    stored = quantize_tensors(main, small_model.amax, modelopt.AS_SHIPPED)
    scales = sorted({float(value) for name, value in stored.items() if name.endswith(".input_scale")})
    assert len(rounded) == 3 + 1 + 4 * 4
    # Two sites of a layer see the same input.
    used = sorted({float(torch.tensor(small_model.amax[name]) / 2688) for name in rounded})
    assert used == pytest.approx(scales)
    assert not any(name.endswith(("in_proj", "qkv_proj", "_cache", "lm_head")) for name in rounded)


def test_bytes_are_those_of_the_formats(rows: dict[str, Variant], small_model: Any) -> None:
    shapes = {name: tensor.shape for name, tensor in rows["bf16"].tensors.items()}
    total = sum(math.prod(shape) for name, shape in shapes.items() if name != "model.embed_tokens.weight")
    experts = sum(math.prod(shape) for name, shape in shapes.items() if ".experts." in name)
    # Half of the experts are chosen.
    assert rows["bf16"].bytes == 2 * (total - experts // 2)
    dense = sum(
        math.prod(shapes[name])
        for name in shapes
        if any(part in name for part in ("in_proj", "q_proj", "k_proj", "v_proj"))
    )
    dense_rows = sum(
        shapes[name][0]
        for name in shapes
        if any(part in name for part in ("in_proj", "q_proj", "k_proj", "v_proj"))
    )
    assert rows["shipped"].bytes - rows["fp8-dense"].bytes == dense - 4 * dense_rows
    head = math.prod(shapes[HEAD])
    assert rows["nvfp4-dense"].bytes - rows["nvfp4-dense-head"].bytes == 2 * head - (head * 9 // 16 + 4)
    assert rows["shipped"].bytes == rows["fp8-kv"].bytes == rows["shipped-w4a4"].bytes
    ratio = (Format.SPARSE24.bytes(64, 256) - 4) / (Format.NVFP4.bytes(64, 256) - 4)
    assert ratio == pytest.approx(13 / 18)
    assert rows["shipped"].bytes - rows["sparse24"].bytes == pytest.approx(
        experts // 2 * 9 / 16 * 5 / 18, abs=1
    )
