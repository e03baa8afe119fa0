"""Held out: how far predictions are off for what they were not fitted on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from gb10.predict.cost import Spread
from gb10.predict.measured import DEPTH, DRAFT, EXCLUDED, FIT, VLLM, Row, rows
from gb10_lab.predict.fit import error, fit, fitted_rows, predicted


@dataclass(frozen=True)
class Held:
    """A row, the tokens a second predicted for it without it, and those over the measured, less one."""

    row: Row
    predicted: float
    error: float

    @property
    def family(self) -> str:
        """The family of the row's model."""
        return self.row.architecture.family


def held_out(given: Sequence[Row] | None = None, engine: str = VLLM) -> list[Held]:
    """Each row of an engine, predicted from the engine's rows of all other families."""
    listed = fitted_rows(engine, given)
    found = []
    for family in sorted({row.architecture.family for row in listed}):
        constants = fit([row for row in listed if row.architecture.family != family])
        found += [
            Held(row, predicted(row, constants), error(row, constants))
            for row in listed
            if row.architecture.family == family
        ]
    return found


def including(*names: str) -> list[Row]:
    """The rows, with some that are excluded fitted as well."""
    return [replace(row, use=FIT) if row.use == EXCLUDED and row.id in names else row for row in rows()]


def others(given: Sequence[Row] | None = None) -> list[Held]:
    """The rows of all other engines likewise; most have one family, so nothing but the priors is left."""
    listed = rows() if given is None else given
    engines = sorted({row.engine for row in listed if row.use == FIT and row.engine != VLLM})
    return [held for engine in engines for held in held_out(listed, engine)]


def never_fitted(use: str, given: Sequence[Row] | None = None) -> list[Held]:
    """The rows of a use that is never fitted, by the constants of their engine's fitted rows.

    With drafts (`DRAFT`) the model's family is held out besides.
    """
    listed = rows() if given is None else given
    found = []
    for row in listed:
        if row.use != use:
            continue
        known = [
            other
            for other in fitted_rows(row.engine, listed)
            if use != DRAFT or other.architecture.family != row.architecture.family
        ]
        constants = fit(known)
        found.append(Held(row, predicted(row, constants), error(row, constants)))
    return found


def depth(given: Sequence[Row] | None = None) -> list[Held]:
    """llama.cpp's rows at depth, from its rows at depth 0."""
    return never_fitted(DEPTH, given)


def drafts(given: Sequence[Row] | None = None) -> list[Held]:
    """The rows with speculative decoding."""
    return never_fitted(DRAFT, given)


def spread(held: Iterable[Held]) -> Spread:
    """The sizes of the errors: their median, what four of five are within, the largest."""
    sizes = sorted(abs(one.error) for one in held)
    return Spread(len(sizes), median(sizes), sizes[-(-len(sizes) * 4 // 5) - 1], sizes[-1])


def within(held: Sequence[Held], limit: float = 0.1) -> float:
    """The part of the rows that are off by no more than ``limit``."""
    return sum(abs(one.error) <= limit for one in held) / len(held)
