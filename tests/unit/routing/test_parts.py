"""The rows that a model's table has, out of the formats of its checkpoint."""

from typing import Any

import pytest

from gb10 import routing
from gb10.checkpoint.folder import Checkpoint
from gb10.checkpoint.formats import Format, Formats
from gb10.checkpoint.modules import module_of
from gb10.routing import Part, parts_of

W4A4, W4A16 = Format("nvfp4", "nvfp4"), Format("nvfp4")
FP8 = Format("fp8", "fp8")


def formats(**modules: Format) -> Formats:
    """Formats of modules by short names."""
    names = {
        "q": "model.layers.0.self_attn.q_proj",
        "o": "model.layers.0.self_attn.o_proj",
        "experts": "model.layers.0.mlp.experts.0.up_proj",
        "head": "lm_head",
        "mtp": "mtp.layers.0.self_attn.q_proj",
        "gate": "model.layers.0.mlp.gate",
    }
    return Formats(modules=tuple((module_of(names[key]), form) for key, form in modules.items()))


def rows(found: Formats, drafts: bool = False, **config: Any) -> dict[str, list[Part]]:
    checkpoint = Checkpoint("m", config={"architectures": ["A"], **config})
    parts = parts_of(checkpoint, found, drafts=drafts)
    assert parts is not None
    listed: dict[str, list[Part]] = {}
    for part in parts:
        listed.setdefault(part.operation, []).append(part)
    return listed


def test_nothing_known_is_the_whole_table() -> None:
    assert parts_of(Checkpoint("m"), Formats()) is None


def test_a_plain_model_has_no_rows_of_formats() -> None:
    assert set(rows(formats(q=Format(), head=Format()))) == {
        "dense",
        "attention",
        "lm_head",
        "sampling",
        "kv_cache",
    }


@pytest.mark.parametrize(
    ("form", "operation", "variant"),
    [
        (W4A4, "nvfp4_linear", "w4a4"),
        (W4A16, "nvfp4_linear", "w4a16"),
        (FP8, "fp8_linear", "tensor"),
        (Format("fp8_channel", "fp8"), "fp8_linear", "channel"),
        (Format("fp8_block", "fp8"), "fp8_linear", "block"),
        (Format("fp8_channel"), "fp8_linear", "w8a16"),
        (Format("int4"), "other_linear", ""),
        (Format("mxfp8", "mxfp8"), "other_linear", ""),
    ],
)
def test_linear_layers(form: Format, operation: str, variant: str) -> None:
    (part,) = rows(formats(q=form))[operation]
    assert part.variant == variant
    assert (operation == "other_linear") == (part.note == form.weight.upper())


@pytest.mark.parametrize(
    ("form", "operation", "variant"),
    [
        (W4A4, "nvfp4_moe", "w4a4"),
        (W4A16, "nvfp4_moe", "w4a16"),
        (FP8, "fp8_moe", "tensor"),
        (Format("fp8_block", "fp8"), "fp8_moe", "block"),
        (Format("mxfp4"), "other_moe", "mxfp4"),
        (Format("int4"), "other_moe", ""),
    ],
)
def test_experts(form: Format, operation: str, variant: str) -> None:
    found = rows(formats(q=Format(), experts=form))
    assert [part.variant for part in found[operation]] == [variant]
    assert not {"nvfp4_linear", "fp8_linear", "other_linear"} & set(found)


def test_mixed_precision_has_a_row_for_each_format() -> None:
    found = rows(formats(q=FP8, o=W4A4, experts=W4A16, head=W4A16))
    assert [part.variant for part in found["fp8_linear"]] == ["tensor"]
    assert [part.variant for part in found["nvfp4_linear"]] == ["w4a4"]
    assert [part.variant for part in found["nvfp4_moe"]] == ["w4a16"]
    assert [part.variant for part in found["activation_quant"]] == ["w4a4"]


def test_activations_stay_where_all_is_weight_only() -> None:
    assert [part.variant for part in rows(formats(q=W4A16))["activation_quant"]] == ["w4a16"]
    assert "activation_quant" not in rows(formats(q=FP8))


@pytest.mark.parametrize(
    ("form", "like"),
    [(Format(), ""), (W4A16, "nvfp4_linear"), (FP8, "fp8_linear"), (Format("int4"), "other_linear")],
)
def test_the_head_is_what_the_checkpoint_holds(form: Format, like: str) -> None:
    (part,) = rows(formats(head=form))["lm_head"]
    assert part.like == like
    (row,) = routing.table(routing.Target((12, 1)), [part])
    assert ("BF16" in row.backend) == (not like)


def test_drafts_count_where_they_run() -> None:
    found = formats(q=W4A4, mtp=FP8)
    assert "fp8_linear" not in rows(found)
    assert "fp8_linear" in rows(found, drafts=True)


def test_routers_have_no_row() -> None:
    assert "nvfp4_linear" not in rows(formats(gate=W4A4, q=Format()))


@pytest.mark.parametrize(
    ("config", "variant"),
    [
        ({}, ""),
        ({"kv_lora_rank": 512}, "mla"),
        ({"kv_lora_rank": 512, "index_topk": 2048}, "other"),
        ({"model_type": "gpt_oss"}, "other"),
    ],
)
def test_attention_is_not_foretold_where_it_is_of_another_kind(config: dict[str, Any], variant: str) -> None:
    (part,) = rows(formats(q=Format()), **config)["attention"]
    assert part.variant == variant
