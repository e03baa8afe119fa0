"""Fitting: the likeliest constants of an engine, given its rows and the priors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gb10.predict.cost import Constants
from gb10.predict.measured import FIT, Row, rows
from gb10.predict.step import KINDS, READS
from gb10_lab.predict.priors import NOISE, PRIORS, STACK

_STEPS = 200


@dataclass(frozen=True)
class _Data:
    """Rows as arrays: microseconds of each kind at the priors, logarithms of the measured time, stacks."""

    parts: torch.Tensor
    measured: torch.Tensor
    stacks: list[str]
    of: torch.Tensor


def _microseconds(kind: str, amount: float) -> float:
    value = PRIORS[kind].value
    return amount / (value * 1e3) if kind in READS else amount * value


def _data(given: Sequence[Row]) -> _Data:
    stacks = sorted({row.stack for row in given})
    parts = [[_microseconds(kind, row.work()[kind]) for kind in KINDS] for row in given]
    return _Data(
        torch.tensor(parts, dtype=torch.float64),
        torch.tensor([math.log(row.seconds * 1e6) for row in given], dtype=torch.float64),
        stacks,
        torch.tensor([stacks.index(row.stack) for row in given]),
    )


def _constants(factors: Sequence[float], stacks: dict[str, float]) -> Constants:
    """``factors``: how many times longer than at its prior each kind takes."""
    named = dict(zip(KINDS, factors, strict=True))
    return Constants(
        {kind: PRIORS[kind].value * 1e9 / named[kind] for kind in READS},
        {kind: PRIORS[kind].value * 1e-6 * named[kind] for kind in KINDS if kind not in READS},
        stacks,
    )


def prior() -> Constants:
    """The constants of an engine of which nothing was fitted."""
    return _constants([1.0] * len(KINDS), {})


def fit(given: Sequence[Row]) -> Constants:
    """The constants of largest posterior density, by torch's L-BFGS; `prior` where there are no rows.

    All are logarithms with normal priors, the rows' errors are normal in the logarithm of their time, and
    each stack has an offset of its own that is drawn to zero.
    """
    if not given:
        return prior()
    data = _data(given)
    spreads = torch.tensor([PRIORS[kind].spread for kind in KINDS], dtype=torch.float64)
    logs = torch.zeros(len(KINDS), dtype=torch.float64, requires_grad=True)
    offsets = torch.zeros(len(data.stacks), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logs, offsets],
        max_iter=_STEPS,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        predicted = torch.log((data.parts * torch.exp(logs)).sum(1)) + offsets[data.of]
        value = (
            (((data.measured - predicted) / NOISE) ** 2).sum()
            + ((logs / spreads) ** 2).sum()
            + ((offsets / STACK) ** 2).sum()
        )
        value.backward()
        return value

    optimizer.step(loss)
    return _constants(
        torch.exp(logs.detach()).tolist(), dict(zip(data.stacks, offsets.detach().tolist(), strict=True))
    )


def fitted_rows(engine: str, given: Sequence[Row] | None = None) -> list[Row]:
    """The rows that an engine's constants are fitted on."""
    return [row for row in (rows() if given is None else given) if row.use == FIT and row.engine == engine]


def predicted(row: Row, constants: Constants) -> float:
    """Tokens a second of a row by these constants."""
    return row.accepted / sum(constants.times(row.work(), row.stack).values())


def error(row: Row, constants: Constants) -> float:
    """How far that is off: predicted over measured, less one."""
    return predicted(row, constants) / row.tokens_per_second - 1
