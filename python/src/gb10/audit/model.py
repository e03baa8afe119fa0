"""A model as what a decoding step reads: its modules with their bytes, the KV cache, the recurrent states.

All sizes are bytes. `gb10.audit.reading` makes a `Model` of a checkpoint; `gb10 predict` computes with it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

from gb10.checkpoint.size import CacheShape

GDN_IN, GDN, ATTENTION, ROUTER = "GDN in_proj", "GDN other", "attention", "router"
SHARED, EXPERTS, MLP, NORMS = "shared expert", "routed experts", "dense MLP", "norms"
HEAD, EMBEDDING = "lm_head", "embedding"
STATE, KV = "GDN state", "KV cache"
DRAFT, TOWER = "MTP", "vision tower"

WEIGHTS = (GDN_IN, GDN, ATTENTION, ROUTER, SHARED, EXPERTS, MLP, NORMS, HEAD, EMBEDDING)
"""Components of weights that a decoded token reads. Of the embedding that is a row."""

CACHES = (STATE, KV)
"""What a decoded token reads beside them; states are written, too."""

APART = (DRAFT, TOWER)
"""Components that a token without drafts and images does not read."""

KEEP, FP8, NVFP4 = "keep", "fp8", "nvfp4"
"""What the dense side and the head may become at load: as `gb10 serve --dense` and ``--head``."""

DENSE_SIDE, HEAD_SIDE = "dense", "head"
"""Which of the two options a module follows."""


@dataclass(frozen=True, slots=True)
class Part:
    """A module of the checkpoint with its scales and bias; all routed experts of a layer are one.

    Attributes:
        name: The module's name in the checkpoint.
        component: One of `WEIGHTS` or `APART`.
        format: How its weights are stored: nvfp4, fp8, mxfp4, ... (words of `checkpoint.formats.Format`),
            or bf16, f16, f32.
        size: Bytes on the GPU, once loaded as they are.
        tensors: How many tensors it has.
        layer: Number of its layer, None outside of them.
        shape: Rows and columns of its matrix in values, None where it is no single one.
        experts: How many routed experts it holds; 0 for all other modules.
        side: `DENSE_SIDE` or `HEAD_SIDE` where `gb10 serve` can make it smaller at load, else "".
        fp8: Bytes as FP8 with a scale a row; ``size`` where it stays.
        nvfp4: Bytes as NVFP4; ``size`` where it stays.
    """

    name: str
    component: str
    format: str
    size: int
    tensors: int = 1
    layer: int | None = None
    shape: tuple[int, int] | None = None
    experts: int = 0
    side: str = ""
    fp8: int = 0
    nvfp4: int = 0

    def as_(self, form: str) -> "Part":
        """This module after a load that makes it ``form`` (`KEEP`, `FP8`, `NVFP4`)."""
        if form == KEEP or not self.side:
            return self
        size = self.fp8 if form == FP8 else self.nvfp4
        return replace(self, format=form, size=size, fp8=size, nvfp4=size, side="")


@dataclass(frozen=True)
class Model:
    """What is known of a model.

    Attributes:
        name: The folder's name, or that on the hub.
        architecture: The class that its config names.
        method: vLLM's name for its quantisation, "" for none.
        parts: Its modules, in the order of the files.
        experts: Routed experts of a layer; 0 for a dense model.
        chosen: How many of them a token takes.
        context: The longest context that vLLM takes by its config, None where that does not say.
        kv_bits: Bits of a value of the KV cache.
        cache: Bytes of the KV cache; its ``per_sequence`` is what the budget counts for the states.
        state: Bytes of one sequence's recurrent states as vLLM keeps them.
        recurrent: How many layers have such a state.
    """

    name: str
    architecture: str
    method: str
    parts: tuple[Part, ...]
    experts: int
    chosen: int
    context: int | None
    kv_bits: int
    cache: CacheShape
    state: int
    recurrent: int

    @cached_property
    def stored(self) -> Mapping[str, int]:
        """Bytes of all weights by component."""
        return MappingProxyType(_sums((part.component, part.size) for part in self.parts))

    @property
    def weights(self) -> int:
        """Bytes of all weights."""
        return sum(part.size for part in self.parts)

    def of(self, *components: str) -> tuple[Part, ...]:
        """The modules of these components."""
        return tuple(part for part in self.parts if part.component in components)

    def requantised(self, dense: str = KEEP, head: str = KEEP) -> "Model":
        """This model after a load with ``--dense`` and ``--head``."""
        forms = {DENSE_SIDE: dense, HEAD_SIDE: head, "": KEEP}
        return replace(self, parts=tuple(part.as_(forms[part.side]) for part in self.parts))


def _sums(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, size in pairs:
        found[name] = found.get(name, 0) + size
    return found


@dataclass(frozen=True)
class Traffic:
    """Bytes that one decoding step of ``batch`` sequences reads, a token each; of states also what it writes.

    ``parts`` has no component that reads nothing.
    """

    parts: Mapping[str, int]
    batch: int = 1

    @property
    def step(self) -> int:
        """All of a step."""
        return sum(self.parts.values())

    @property
    def weights(self) -> int:
        """Of a step, what are weights."""
        return sum(size for name, size in self.parts.items() if name in WEIGHTS)

    @property
    def per_token(self) -> float:
        """A token's share of a step."""
        return self.step / self.batch

    def floor(self, bandwidth: float) -> float:
        """The least seconds of a step that reads at ``bandwidth`` bytes a second."""
        return self.step / bandwidth


def _read(part: Part, batch: int, share: float) -> int:
    """What a step reads of a module; ``share``: of its routed experts."""
    if part.component == EMBEDDING:
        return part.size // part.shape[0] * batch if part.shape else 0
    if part.experts:
        # Whole numbers stay exact: all experts of a layer have one size.
        return (
            round(part.size * share / part.experts) if share % 1 else part.size * int(share) // part.experts
        )
    return part.size


def bytes_per_token(
    model: Model, batch: int = 1, distinct_experts: float | None = None, context: int = 0
) -> Traffic:
    """What a decoding step of ``batch`` sequences reads; `Traffic.per_token` is a token's share.

    Args:
        model: The model, as shipped or `Model.requantised`.
        batch: How many sequences decode a token each.
        distinct_experts: How many different routed experts of a layer the batch takes, on average. With one
            sequence that is `Model.chosen`; for more somebody must know (`gb10 predict`).
        context: Tokens that each sequence has in the KV cache.

    Raises:
        ValueError: There are routed experts, the batch is larger than 1, and nobody said how many are taken;
            or the number is none that can be.
    """
    share = float(model.chosen) if distinct_experts is None else distinct_experts
    if model.experts and batch > 1 and distinct_experts is None:
        raise ValueError(f"how many distinct experts {batch} sequences take is not known")
    if model.experts and not model.chosen <= share <= min(model.experts, model.chosen * batch):
        raise ValueError(
            f"{batch} sequences that take {model.chosen} of {model.experts} cannot take {share:g}"
        )
    found = _sums(
        (part.component, _read(part, batch, share)) for part in model.parts if part.component in WEIGHTS
    )
    found[STATE] = 2 * model.state * batch
    window = min(context, model.cache.window) * model.cache.per_window_token
    found[KV] = (context * model.cache.per_token + window) * batch
    order = {name: found[name] for name in (*WEIGHTS, *CACHES) if found.get(name)}
    return Traffic(MappingProxyType(order), batch)


def draft_bytes(model: Model) -> Mapping[str, int]:
    """What one token of MTP's drafter reads: its own layer and, where it brings none, the model's head."""
    found = _sums((part.component, _read(part, 1, model.chosen)) for part in model.of(DRAFT))
    if found and not any(part.name.endswith(HEAD) for part in model.of(DRAFT)):
        found[HEAD] = sum(part.size for part in model.of(HEAD))
    return MappingProxyType(found)
