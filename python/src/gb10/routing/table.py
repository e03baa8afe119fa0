"""What a target gets: the rules that fit it, one row per part of the model and batch range."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from gb10.errors import UserError
from gb10.routing.rules import BY_NAME, OPERATIONS, Batch, Target

_ALIASES = {"attention_prefill": "attention", "attention_decode": "attention"}
_ONLY_WITH_A_MODEL = ("fp8_moe", "other_linear", "other_moe")
_ONLY_WITH_OURS = ("dense", "router", "norm", "attention_front")
"""vLLM's own are one kernel among many, which its log does not name."""


@dataclass(frozen=True)
class Part:
    """One operation that a model has, in one of the operation's variants ("" is the first).

    ``like`` names the operation whose kernels run it, where it is not its own: a quantised head is a linear
    layer. ``note`` is what the checkpoint holds, for the reason.
    """

    operation: str
    variant: str = ""
    like: str = ""
    note: str = ""


@dataclass(frozen=True)
class Route:
    """A rule that fits, for a closed range of tokens per step. ``flag`` forces the backend by hand.

    ``variant`` and ``like`` are those of the part that the row is for; ``besides`` is the rule's.
    """

    operation: str
    batch: Batch
    backend: str
    whose: str
    reason: str
    flag: str
    forces: tuple[str, ...]
    variant: str = ""
    like: str = ""
    besides: str = ""


def canonical(operation: str) -> str:
    """The operation's name in the table: one attention backend serves both phases."""
    return _ALIASES.get(operation, operation)


def _route(part: Part, target: Target, batch: int) -> Route:
    found = BY_NAME[canonical(part.like or part.operation)]
    variant = part.variant or found.variants[0]
    for rule in found.rules:
        low, high = rule.batch
        if rule.when.fits(target, variant) and low <= batch and (high is None or batch <= high):
            reason = rule.why.format(**target.words)
            return Route(
                canonical(part.operation),
                rule.batch,
                rule.backend.format(**target.words),
                rule.whose,
                f"{part.note}; {reason}" if part.note else reason,
                "" if part.like else found.flag(rule.by_hand),
                rule.forces,
                variant,
                part.like,
                rule.besides,
            )
    raise LookupError(f"no rule for {part.operation} on {target}")


def route(operation: str, target: Target, batch: int = 1, variant: str = "") -> Route:
    """The backend of ``operation`` on ``target`` for ``batch`` tokens per step.

    Raises KeyError for an operation that is not in ``OPERATIONS`` and LookupError when no rule fits,
    which means a capability below 7.5.
    """
    return _route(Part(operation, variant), target, batch)


def _batches(part: Part, target: Target) -> Iterator[Route]:
    batch: int | None = 1
    while batch is not None:
        try:
            found = _route(part, target, batch)
        except LookupError:
            raise UserError(
                f"no NVFP4 kernels are known for {target}; GPUs of 7.5 to 12.1 have some"
            ) from None
        end = found.batch[1]
        yield replace(found, batch=(batch, end))
        batch = None if end is None else end + 1


def table(target: Target, parts: Collection[Part | str] | None = None) -> list[Route]:
    """All routes of ``target``, in table order, one per part and batch range.

    ``parts`` limits the rows: operations by name, or with what a model needs of them. None is every operation
    that can be foretold. Raises UserError for a GPU that NVFP4 cannot run on.
    """
    if parts is None:
        parts = [operation.name for operation in OPERATIONS if operation.name not in _ONLY_WITH_A_MODEL]
    if not target.parts:
        parts = [part for part in parts if getattr(part, "operation", part) not in _ONLY_WITH_OURS]
    wanted = [Part(canonical(part)) if isinstance(part, str) else part for part in parts]
    known = [operation.name for operation in OPERATIONS]
    ordered = sorted(dict.fromkeys(wanted), key=lambda part: known.index(canonical(part.operation)))
    return [row for part in ordered for row in _batches(part, target)]
