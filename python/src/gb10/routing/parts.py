"""Which rows a model's table has: its operations, in the formats that its checkpoint holds."""

from collections.abc import Iterator

from gb10.checkpoint.folder import Checkpoint
from gb10.checkpoint.formats import Format, Formats
from gb10.checkpoint.modules import ATTENTION, EXPERTS, GDN, HEAD, LINEAR, MLP, SHARED
from gb10.routing.table import Part

FUSED_FAMILIES = ("qwen3_next", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_moe")
"""Values of model_type whose decoder layers our engine takes over (gb10.vllm_plugin.cuda.layers)."""

_DENSE = (ATTENTION, GDN, MLP, SHARED)
_SCALES = {"fp8": "tensor", "fp8_channel": "channel", "fp8_block": "block"}


def _linear(form: Format) -> tuple[str, str]:
    """The operation and variant of linear layers in a format."""
    if form.weight == "nvfp4":
        return "nvfp4_linear", "w4a4" if form.activation else "w4a16"
    if form.weight in _SCALES:
        return "fp8_linear", _SCALES[form.weight] if form.activation else "w8a16"
    return "other_linear", ""


def _note(form: Format) -> str:
    """What the checkpoint holds, in words for a row that is not called by its format."""
    word = form.weight.partition("_")[0].upper()
    return word if form.weight.replace("_", "").isalnum() else form.weight


def _experts(form: Format) -> Part:
    if form.weight == "nvfp4":
        return Part("nvfp4_moe", "w4a4" if form.activation else "w4a16")
    if form.weight in _SCALES:
        return Part("fp8_moe", _SCALES[form.weight])
    return Part("other_moe", "mxfp4" if form.weight == "mxfp4" else "", note=_note(form))


def _head(form: Format) -> Part:
    like, variant = _linear(form)
    return (
        Part("lm_head", variant, like, f"{_note(form)} in the checkpoint") if form.weight else Part("lm_head")
    )


def _attention(checkpoint: Checkpoint) -> str:
    text = checkpoint.text
    if text.get("index_topk") or text.get("model_type") in ("gpt_oss", "deepseek_v4"):
        return "other"
    return "mla" if text.get("kv_lora_rank") else ""


def parts_of(checkpoint: Checkpoint, formats: Formats, *, drafts: bool = False) -> list[Part] | None:
    """The parts of a model's table; None when nothing is known about it. ``drafts``: MTP's layers run too."""
    return list(_parts(checkpoint, formats, drafts)) if checkpoint.config else None


def _parts(checkpoint: Checkpoint, formats: Formats, drafts: bool) -> Iterator[Part]:
    linear = [form for form in formats.of(*LINEAR, drafts=drafts) if form.weight]
    plain = any(not form.weight for form in formats.of(*_DENSE, drafts=drafts))
    experts = [form for form in formats.of(EXPERTS, drafts=drafts) if form.weight]
    heads = formats.of(HEAD)
    for form in linear:
        operation, variant = _linear(form)
        yield Part(operation, variant, note=_note(form) if operation == "other_linear" else "")
    if plain:
        yield Part("dense")
    yield from map(_experts, experts)
    fused = checkpoint.text.get("model_type") in FUSED_FAMILIES
    if fused and any(one.weight == "nvfp4" for one in experts):
        yield Part("router")
        yield Part("norm")
    if fused:
        yield Part("attention_front")
    yield Part("attention", _attention(checkpoint))
    if checkpoint.has_gdn:
        yield Part("gdn_prefill")
        yield Part("gdn_decode")
    four = [form for form in (*linear, *experts, *heads) if form.weight == "nvfp4"]
    if four:
        yield Part("activation_quant", "w4a4" if any(form.activation for form in four) else "w4a16")
    yield from map(_head, heads or [Format()])
    yield Part("sampling")
    yield Part("kv_cache")
