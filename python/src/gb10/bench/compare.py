"""Hold two results against each other: a verdict only where the difference is beyond the noise."""

import math
from dataclasses import dataclass

from gb10.arguments import printable
from gb10.bench import battery
from gb10.bench.results import FIGURES, Figure, Point, Result, Spread
from gb10.bench.table import WIDTH, shown
from gb10.errors import UserError

LEAST_REPEATS = 5
"""With fewer the spread says too little, and there is no verdict."""
_MARGIN = 1.5
"""How many times the spread of both a difference must be. With 5 repeats of a standard deviation of 8 %, one
of 40 comparisons of a server with itself is called a difference; with 1.0 it would be one of 16."""
_LENGTHS = 0.02
"""By how much of their tokens two prompts may differ and be the same input: nonces are not all equal."""


@dataclass(frozen=True)
class Row:
    """A figure of a point in both results. ``ratio`` is how much better B is: above 1 is better."""

    point: str
    figure: Figure
    first: Spread
    second: Spread

    @property
    def ratio(self) -> float:
        """B's speed over A's: times count the other way."""
        ratio = self.second.median / self.first.median
        return ratio if self.figure.more_is_better else 1 / ratio

    @property
    def noise(self) -> float:
        """A share that a difference must exceed: the figure's own floor, or what both spreads say."""
        return max(self.figure.floor, _MARGIN * math.hypot(self.first.relative, self.second.relative))

    @property
    def verdict(self) -> str:
        """In words."""
        if min(self.first.count, self.second.count) < LEAST_REPEATS:
            return "too few repeats"
        if self.ratio > 1 + self.noise:
            return "B is faster"
        if self.ratio < 1 / (1 + self.noise):
            return "A is faster"
        return "no difference beyond the noise"


def check(first: Result, second: Result) -> None:
    """Raises UserError, one line, when the two did not measure the same."""
    for name in {**first.settings, **second.settings}:
        one, other = first.settings.get(name), second.settings.get(name)
        if one != other:
            raise UserError(
                f"the two were measured with different settings: {name} is {_short(one)} in A and "
                f"{_short(other)} in B; measure both in the same way"
            )
    for point in first.points:
        same = second.point(point.text, point.concurrency)
        if same is None or len(first.points) != len(second.points):
            raise UserError(f"the two measured different points: {point.label}; measure both in the same way")
        lengths = point.input_tokens, same.input_tokens
        if abs(lengths[0] - lengths[1]) > max(2.0, _LENGTHS * lengths[0]):
            raise UserError(
                f"{point.label} is {lengths[0]} tokens in A and {lengths[1]} in B: other tokenizers or "
                "another context (--long); these speeds do not compare"
            )


def _short(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _figures(point: Point) -> list[Figure]:
    """What is judged: prefill of the long input alone, the throughput of requests side by side alone."""
    wanted = {"decode", "ttft"} if point.concurrency == 1 else {"throughput", "ttft"}
    if point.text == battery.LONG:
        wanted = {"decode", "prefill"}
    return [figure for figure in FIGURES if figure.name in wanted]


def rows(first: Result, second: Result) -> list[Row]:
    """All figures. Raises UserError as `check` does."""
    check(first, second)
    found = []
    for point in first.points:
        same = second.point(point.text, point.concurrency)
        assert same is not None
        found += [
            Row(point.label, figure, point.spread(figure.name), same.spread(figure.name))
            for figure in _figures(point)
        ]
    return found


def notes(first: Result, second: Result) -> list[str]:
    """What else differs and may be the reason."""
    found = []
    for name, words in (("model", "models"), ("server", "versions of the server")):
        one, other = first.about.get(name), second.about.get(name)
        if one != other:
            found.append(f"note: two {words}: A {one}, B {other}")
    if _device(first) != _device(second):
        found.append("NOTE: two machines: these ratios compare machines")
    return [printable(line)[:WIDTH] for line in found]


def _device(result: Result) -> object:
    machine = result.about.get("machine") or {}
    return machine.get("gpu") or (machine.get("cpu"), machine.get("cores"))


def render(first: Result, second: Result, names: tuple[str, str]) -> str:
    """A table of at most 80 columns."""
    lines = [
        *(f"{side}: {printable(name)}"[:WIDTH] for side, name in zip("AB", names, strict=True)),
        *notes(first, second),
        "",
    ]
    lines.append(f"{'':<12}{'':<17}{'A':>8}{'B':>8}{'B : A':>7}{'noise':>7}  verdict")
    for row in rows(first, second):
        label = f"{row.figure.name}, {row.figure.unit}"
        verdict = row.verdict.replace("no difference beyond the noise", "within the noise")
        lines.append(
            f"{row.point:<12}{label:<17}{shown(row.first.median):>8}{shown(row.second.median):>8}{row.ratio:>7.2f}"
            f"{row.noise:>7.0%}  {verdict}"[:WIDTH].rstrip()
        )
    lines += [
        "",
        "B : A is of speed, of times too: above 1, B is faster. noise: 10 % of decoding,",
        "20 % of prefill and of the time to the first token, or what the spread of the",
        "repeats says where that is more",
    ]
    return "\n".join(lines) + "\n"
