"""What a run measured, as it is kept in JSON, and the arithmetic on it.

All times are in seconds. A `Request` is one answer; a `Repeat` are the requests of one point side by side,
measured once; a `Point` is a text with a number of requests side by side.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from gb10.arguments import printable
from gb10.errors import UserError
from gb10.files import read_json

SCHEMA = 1
KIND = "gb10-bench"


@dataclass(frozen=True)
class Request:
    """One answer: tokens in and out, when it was sent, time to its first token, gaps between what came.

    `first_token` and the sum of `between` are above 0.
    """

    input_tokens: int
    output_tokens: int
    start: float
    first_token: float
    between: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """From sending it to its last token."""
        return self.first_token + sum(self.between)

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first one."""
        return (self.output_tokens - 1) / sum(self.between)

    @property
    def prefill_rate(self) -> float:
        """Prompt's tokens a second until the first token."""
        return self.input_tokens / self.first_token


@dataclass(frozen=True)
class Drafts:
    """Speculative decoding in one repeat, from the server's counters."""

    drafts: int
    tokens: int
    accepted: int
    by_position: tuple[float, ...]
    """Share of the drafts whose token at that position was accepted."""

    @property
    def length(self) -> float:
        """Tokens that a step of the model gives."""
        return 1 + self.accepted / self.drafts if self.drafts else 1.0


@dataclass(frozen=True)
class Power:
    """What the GPU said while a repeat ran; None where it does not say. Watts, MHz, degrees Celsius."""

    samples: int
    watts: float | None
    watts_peak: float | None
    clock: float | None
    clock_least: float | None
    temperature: float | None


@dataclass(frozen=True)
class Repeat:
    """One measurement of a point."""

    requests: tuple[Request, ...]
    drafts: Drafts | None = None
    power: Power | None = None

    @property
    def seconds(self) -> float:
        """From the first request to the last token of all."""
        return max(r.start + r.seconds for r in self.requests) - min(r.start for r in self.requests)

    @property
    def throughput(self) -> float:
        """Output tokens a second of all requests together, prefill counted in."""
        return sum(r.output_tokens for r in self.requests) / self.seconds

    def of_requests(self, figure: Callable[[Request], float]) -> float:
        """The median over the requests."""
        return median(map(figure, self.requests))


@dataclass(frozen=True)
class Spread:
    """A figure over the repeats: median and quartiles."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Raises ValueError for no values."""
        if not values:
            raise ValueError("nothing was measured")
        low, high = (values[0],) * 2
        if len(values) > 1:
            low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(median(values), low, high, len(values))

    @property
    def relative(self) -> float:
        """The distance of the quartiles as a share of the median."""
        return (self.high - self.low) / self.median if self.median else math.inf


@dataclass(frozen=True)
class Figure:
    """A figure of a point: its name, unit, how it comes out of a repeat, and how it is judged."""

    name: str
    unit: str
    of: Callable[[Repeat], float]
    more_is_better: bool
    floor: float
    """Differences below this share are noise, whatever the spread says."""


FIGURES = (
    Figure("decode", "tok/s", lambda r: r.of_requests(lambda q: q.decode_rate), True, 0.10),
    Figure("throughput", "tok/s", lambda r: r.throughput, True, 0.10),
    Figure("ttft", "ms", lambda r: 1e3 * r.of_requests(lambda q: q.first_token), False, 0.20),
    Figure("itl", "ms", lambda r: 1e3 * r.of_requests(lambda q: median(q.between)), False, 0.10),
    Figure("prefill", "tok/s", lambda r: r.of_requests(lambda q: q.prefill_rate), True, 0.20),
)
"""``itl``: the median gap between what the server sends. With drafts several tokens come at once."""

_BY_NAME = {figure.name: figure for figure in FIGURES}


@dataclass(frozen=True)
class Point:
    """A text with so many requests side by side, each with this many tokens of output."""

    text: str
    concurrency: int
    output_tokens: int
    repeats: tuple[Repeat, ...]

    @property
    def label(self) -> str:
        """ "prose", "mixed x 4"."""
        text = printable(self.text)
        return text if self.concurrency == 1 else f"{text} x {self.concurrency}"

    @property
    def requests(self) -> list[Request]:
        """Those of all repeats."""
        return [request for repeat in self.repeats for request in repeat.requests]

    @property
    def input_tokens(self) -> int:
        """The prompt's, in the median."""
        return round(median(request.input_tokens for request in self.requests))

    def spread(self, name: str) -> Spread:
        """A figure by its name, over the repeats."""
        return Spread.of([_BY_NAME[name].of(repeat) for repeat in self.repeats])

    @property
    def drafts(self) -> Drafts | None:
        """Speculative decoding over all repeats."""
        found = [repeat.drafts for repeat in self.repeats if repeat.drafts is not None]
        total = sum(one.drafts for one in found)
        if not total:
            return None
        positions = max(len(one.by_position) for one in found)
        shares = (
            sum(one.by_position[at] * one.drafts for one in found if at < len(one.by_position)) / total
            for at in range(positions)
        )
        tokens, accepted = sum(one.tokens for one in found), sum(one.accepted for one in found)
        return Drafts(total, tokens, accepted, tuple(shares))

    def powers(self, field: Callable[[Power], float | None]) -> list[float]:
        """What the GPU said in each repeat; none where it does not say."""
        given = (field(repeat.power) for repeat in self.repeats if repeat.power is not None)
        return [value for value in given if value is not None]


@dataclass(frozen=True)
class Result:
    """A whole run. ``settings`` are what two results must share; ``about`` is where and when it was."""

    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    points: tuple[Point, ...]
    turns: tuple[Mapping[str, Any], ...] = field(default=())
    """Of ``gb10 bench run``: the starts of the server that these repeats are from."""

    def point(self, text: str, concurrency: int) -> Point | None:
        """The one of that text and number of requests."""
        wanted = (text, concurrency)
        return next((one for one in self.points if (one.text, one.concurrency) == wanted), None)

    def as_json(self) -> dict[str, Any]:
        """All of it, every sample too."""
        return {"kind": KIND, "schema": SCHEMA, **asdict(self)}


def merged(results: Sequence[Result]) -> Result:
    """Several turns of one server as one result. Raises ValueError when their points differ."""
    first = results[0]
    points = []
    for at, point in enumerate(first.points):
        same = [result.points[at] for result in results]
        if any((one.text, one.concurrency) != (point.text, point.concurrency) for one in same):
            raise ValueError("the turns measured different points")
        repeats = tuple(repeat for one in same for repeat in one.repeats)
        points.append(Point(point.text, point.concurrency, point.output_tokens, repeats))
    turns = tuple(turn for result in results for turn in result.turns)
    return Result(first.settings, first.about, tuple(points), turns)


def load(path: Path) -> Result:
    """A result that ``--json`` wrote. Raises UserError, one line, for anything else."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise UserError(f"{path} is no result of gb10 bench; write one with: gb10 bench URL --json FILE")
    if content.get("schema") != SCHEMA:
        raise UserError(
            f"{path} has schema {content.get('schema')!r}, and this gb10 reads {SCHEMA}; measure again"
        )
    try:
        return _result(content)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged: {type(error).__name__}: {error}; measure again, or get the file again"
        ) from error


def _result(content: Mapping[str, Any]) -> Result:
    points = tuple(map(_point, content["points"]))
    if not points:
        raise ValueError("it has no points")
    settings, about = dict(content["settings"]), dict(content["about"])
    machine = about.get("machine")
    if machine is not None and not isinstance(machine.get("gpu"), Mapping | None):
        raise ValueError("its machine is none")
    return Result(settings, about, points, tuple(map(dict, content["turns"])))


def _point(content: Mapping[str, Any]) -> Point:
    repeats = tuple(map(_repeat, content["repeats"]))
    text, concurrency, tokens = content["text"], content["concurrency"], content["output_tokens"]
    if any(request.output_tokens != tokens for repeat in repeats for request in repeat.requests):
        raise ValueError("its answers have other lengths than the point")
    if not repeats or not isinstance(text, str):
        raise ValueError("a point has no name or no repeats")
    return Point(text, _whole(concurrency), _whole(tokens), repeats)


def _repeat(content: Mapping[str, Any]) -> Repeat:
    requests = tuple(map(_request, content["requests"]))
    if not requests:
        raise ValueError("a repeat has no requests")
    drafts, power = content["drafts"], content["power"]
    if drafts is not None:
        _numbers(value for name, value in drafts.items() if name != "by_position")
        drafts = Drafts(**{**drafts, "by_position": tuple(_numbers(drafts["by_position"]))})
    if power is not None:
        _numbers(value for value in power.values() if value is not None)
    return Repeat(requests, drafts, None if power is None else Power(**power))


def _request(content: Mapping[str, Any]) -> Request:
    start, first = _numbers((content["start"], content["first_token"]))
    between = tuple(_numbers(content["between"]))
    if first <= 0 or not sum(between) > 0:
        raise ValueError("an answer took no time")
    tokens = _whole(content["input_tokens"]), _whole(content["output_tokens"])
    return Request(*tokens, start, first, between)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{value!r} is not a whole number of 1 or more")
    return value


_MOST = 1e15
"""Seconds, tokens, watts: what is more is damage."""


def _numbers(values: Iterable[Any]) -> list[float]:
    found = list(values)
    for value in found:
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _MOST:
            raise ValueError(f"{value!r} is not a number")
    return [float(value) for value in found]
