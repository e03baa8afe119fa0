"""A checkpoint to predict for, as `gb10.audit` reads it: the one place where the two meet."""

from collections.abc import Iterable

from gb10.audit import model as words
from gb10.audit.model import Model, Part, draft_bytes
from gb10.predict.engines import OURS, Subject
from gb10.predict.step import READS, Sizes, kv_bytes_of

_BESIDE = (words.EXPERTS, words.EMBEDDING)
_GATES = ("in_proj_ba", "in_proj_a", "in_proj_b")
_OUT = ("o_proj", "out_proj", "down_proj")
_SMALL = "shared_expert_gate"

_ARCHITECTURES = (
    "Qwen3NextForCausalLM",
    "Qwen3MoeForCausalLM",
    "Qwen3_5MoeForConditionalGeneration",
    "Qwen3_5MoeForCausalLM",
)
"""Models whose layers our kernels take whole where the experts are NVFP4 (docs/engine.md)."""


def _kind(parts: Iterable[Part]) -> str:
    """The kind of read of the largest matrix among some modules, by its bits for a value."""
    shaped = [part for part in parts if part.shape]
    if not shaped:
        return READS[0]
    largest = max(shaped, key=lambda part: part.size)
    rows, columns = largest.shape or (1, 1)
    bits = largest.size * 8 / (rows * columns)
    return READS[0] if bits > 12 else READS[1] if bits > 6 else READS[2]


def _side(part: Part) -> str:
    """Modules of a layer and component that vLLM reads as one matrix have one side."""
    last = part.name.rpartition(".")[2]
    return "gates" if last in _GATES else "out" if last in _OUT else "in"


def _layers(parts: Iterable[Part]) -> int:
    return len({part.layer for part in parts if part.layer is not None})


def sizes(model: Model, kv: str | None = None) -> Sizes:
    """What a step of a model reads. ``kv``: the type of the KV cache, None for the checkpoint's."""
    read = [part for part in model.of(*words.WEIGHTS) if part.component not in _BESIDE]
    weights = dict.fromkeys(READS, 0.0)
    groups: dict[tuple[int | None, str, str], str] = {}
    for part in read:
        kind = _kind([part])
        weights[kind] += part.size
        if part.shape and not part.name.endswith(_SMALL):
            groups[part.layer, part.component, _side(part)] = kind
    experts = model.of(words.EXPERTS)
    drafted = dict(draft_bytes(model))
    head = model.of(words.HEAD)
    scale = kv_bytes_of(kv) * 8 / model.kv_bits if kv else 1.0
    return Sizes(
        weights,
        len(groups),
        sum(kind != READS[0] for kind in groups.values()),
        layers=_layers(part for part in model.parts if part.component not in words.APART),
        attention=_layers(model.of(words.ATTENTION)),
        gdn=model.recurrent,
        moe=_layers(experts),
        shared=_layers(model.of(words.SHARED)),
        mlp=_layers(model.of(words.MLP)),
        expert=sum(part.size for part in experts) / max(model.experts, 1),
        experts=model.experts,
        chosen=model.chosen,
        state=2.0 * model.state,
        kv_token=model.cache.per_token * scale,
        kv_window=model.cache.per_window_token * scale,
        window=model.cache.window,
        head=float(sum(part.size for part in head)),
        head_kind=_kind(head),
        draft=float(drafted.get(words.DRAFT, 0)),
        draft_kind=_kind(model.of(words.DRAFT)),
    )


def subject(model: Model, kv: str | None = None) -> Subject:
    """A checkpoint to predict for. ``kv``: the type of its KV cache, None for the checkpoint's."""

    def made(engine: str, dense: str, head: str) -> Sizes:
        return sizes(model.requantised(dense, head) if engine == OURS else model, kv)

    experts = model.of(words.EXPERTS)
    fits = model.architecture in _ARCHITECTURES and all(part.format == "nvfp4" for part in experts)
    why = "" if fits else f"gb10's kernels do not take all layers of {model.name} as it is"
    return Subject(model.name, made, bool(model.of(words.DRAFT)), why, model.context)
