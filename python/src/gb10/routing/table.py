"""What a target gets: the rules that fit it, one row per operation and batch range."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from gb10.errors import UserError
from gb10.routing.rules import BY_NAME, OPERATIONS, Batch, Target

_ALIASES = {"attention_prefill": "attention", "attention_decode": "attention"}


@dataclass(frozen=True)
class Route:
    """A rule that fits, for a closed range of tokens per step. ``flag`` forces the backend by hand."""

    operation: str
    batch: Batch
    backend: str
    whose: str
    reason: str
    flag: str
    forces: tuple[str, ...]


def canonical(operation: str) -> str:
    """The operation's name in the table: one attention backend serves both phases."""
    return _ALIASES.get(operation, operation)


def route(operation: str, target: Target, batch: int = 1) -> Route:
    """The backend of ``operation`` on ``target`` for ``batch`` tokens per step.

    Raises KeyError for an operation that is not in ``OPERATIONS`` and LookupError when no rule fits,
    which means a capability below 7.5.
    """
    found = BY_NAME[canonical(operation)]
    for rule in found.rules:
        low, high = rule.batch
        if rule.when.fits(target) and low <= batch and (high is None or batch <= high):
            flag = found.flag(rule.by_hand)
            return Route(found.name, rule.batch, rule.backend, rule.whose, rule.why, flag, rule.forces)
    raise LookupError(f"no rule for {operation} on {target}")


def table(target: Target, operations: Collection[str] | None = None) -> list[Route]:
    """All routes of ``target``, in table order, one per operation and batch range.

    ``operations`` limits the rows. Raises UserError for a GPU that NVFP4 cannot run on.
    """
    wanted = BY_NAME if operations is None else {canonical(name) for name in operations}
    rows: list[Route] = []
    for operation in OPERATIONS:
        batch: int | None = 1 if operation.name in wanted else None
        while batch is not None:
            try:
                found = route(operation.name, target, batch)
            except LookupError:
                raise UserError(f"no NVFP4 kernels for {target}; a GPU of 7.5 or later is needed") from None
            end = found.batch[1]
            rows.append(replace(found, batch=(batch, end)))
            batch = None if end is None else end + 1
    return rows
