"""What an engine makes of a model: the formats that it reads, and the launches of its step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from gb10.errors import UserError
from gb10.predict.architecture import DENSE, Architecture, spread
from gb10.predict.cost import fitted
from gb10.predict.measured import VLLM
from gb10.predict.routing import distinct
from gb10.predict.step import COUNTS, Load, Sizes, sizes_of, work

OURS = "gb10"
KEEP = "keep"

MOST_TOKENS = 16
"""Tokens of a step: distinct experts were counted up to 16 rows, and so far go our kernels of decoding."""

ACCEPTED = 0.82
"""Part of drafts that are accepted, each after the ones before it: two drafts give 2.49 tokens a step then,
where published runs with two drafts of MTP have 2.13, 2.42, 2.54 and 2.68."""

_FAMILIES = ("Qwen3 MoE", "Qwen3-Next", "Qwen3.6 MoE")
"""Models whose layers our kernels take whole where the experts are NVFP4 (docs/engine.md)."""


@dataclass(frozen=True)
class Prediction:
    """Tokens a second of all sequences together, and what a step does.

    Attributes:
        engine: Whose kernels.
        formats: What it reads, in words.
        times: Kind to seconds of a step.
        bytes: Bytes that a step reads; states count twice, they are written.
        accepted: Tokens that a step gives a sequence.
        sequences: Sequences at once.
        lowest, highest: Between them the truth was for four of five held-out figures of vLLM.
    """

    engine: str
    formats: str
    times: Mapping[str, float]
    bytes: float
    accepted: float
    sequences: int
    lowest: float
    highest: float

    @property
    def seconds(self) -> float:
        """The time of a step."""
        return sum(self.times.values())

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second of all sequences."""
        return self.sequences * self.accepted / self.seconds


def requantised(formats: Mapping[str, str], dense: str, head: str) -> dict[str, str]:
    """Formats after a load with ``--dense`` and ``--head``: what is in 16 bit becomes smaller."""
    forms = spread(formats)
    for part in (*DENSE, "gdn_gates"):
        if dense != KEEP and forms[part] == "bf16":
            forms[part] = dense
    if head != KEEP and forms["head"] == "bf16":
        forms["head"] = head
    return forms


def accepted_length(drafts: int) -> float:
    """Tokens a step with so many drafts, where each is accepted with probability `ACCEPTED`."""
    return sum(ACCEPTED**position for position in range(drafts + 1))


@dataclass(frozen=True)
class Subject:
    """A model to predict for.

    Attributes:
        name: What the user calls it.
        sizes: Its sizes as shipped, by engine, ``--dense`` and ``--head``.
        drafts: Whether it has MTP.
        unfit: Why gb10's engine does not take all of it, "" where it does.
        context: The most tokens that vLLM lets a sequence have, None where that is not known.
    """

    name: str
    sizes: Callable[[str, str, str], Sizes]
    drafts: bool
    unfit: str = ""
    context: int | None = None


def published(model: Architecture, kv: str | None = None) -> Subject:
    """A published model as shipped. ``kv``: the type of its KV cache, None for the checkpoint's."""

    def sizes(engine: str, dense: str, head: str) -> Sizes:
        formats = requantised(model.shipped, dense, head) if engine == OURS else spread(model.shipped)
        return sizes_of(model, formats, kv=kv or model.kv, padded=engine == VLLM)

    fits = model.family in _FAMILIES and model.shipped.get("experts") == "nvfp4"
    why = "" if fits else f"gb10's kernels do not take all layers of {model.name} as shipped"
    return Subject(model.name, sizes, model.mtp_layers > 0, why, model.context or None)


def our_work(sizes: Sizes, load: Load) -> dict[str, float]:
    """A step by the launches of gb10's engine.

    Router and shared expert are in the experts' three launches, GDN's gates are rows of its one projection,
    and the norm before a layer's second half is in the router's launch.
    """
    found = work(sizes, load)
    found["matrix"] = 2 * (sizes.layers + sizes.mlp) + 1 + load.drafts * 4
    found["launch"] = sizes.layers + sizes.mlp + load.drafts
    return found


def predict(
    subject: Subject,
    engine: str,
    load: Load,
    *,
    dense: str = KEEP,
    head: str = KEEP,
    accepted: float | None = None,
) -> Prediction:
    """Tokens a second of a model by an engine. ``load`` says how much; its distinct experts are filled in.

    Raises:
        UserError: The engine does not take the model, or nothing is known of such a load.
    """
    if load.tokens > MOST_TOKENS:
        raise UserError(
            f"{load.sequences} sequences with {load.drafts} drafts are {load.tokens} tokens a step; how many "
            f"experts those touch was counted up to {MOST_TOKENS}: take fewer"
        )
    if load.drafts and not subject.drafts:
        raise UserError(f"{subject.name} has no MTP layer to draft with; leave out --draft")
    if engine == OURS and subject.unfit:
        raise UserError(f"{subject.unfit}, so nothing is predicted for them; take --engine vllm")
    sizes = subject.sizes(engine, dense, head)
    experts = distinct(sizes.experts, sizes.chosen, load.tokens)
    loaded = replace(load, experts=experts)
    done = our_work(sizes, loaded) if engine == OURS else work(sizes, loaded)
    known = fitted()
    times = known.engines[engine].times(done)
    length = accepted_length(load.drafts) if accepted is None else accepted
    rate = load.sequences * length / sum(times.values())
    words = f"dense {dense}, head {head}" if engine == OURS else "as shipped"
    return Prediction(
        engine,
        words,
        times,
        sum(amount for kind, amount in done.items() if kind not in COUNTS),
        length,
        load.sequences,
        rate / (1 + known.spread.most),
        rate / (1 - known.spread.most),
    )
