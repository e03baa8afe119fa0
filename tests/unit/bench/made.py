"""Results made up for the tests."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gb10.bench.measure import Plan
from gb10.bench.results import Drafts, Point, Power, Repeat, Request, Result

PLAN = Plan(("prose", "long"), (1, 4), output=33, long=1024, repeats=5, chat=False)


def request(rate: float, *, first: float = 0.1, tokens: int = 100, start: float = 5.0) -> Request:
    """An answer of 33 tokens at ``rate`` tokens a second after the first."""
    return Request(tokens, 33, start, first, (1 / rate,) * 32)


def point(
    text: str, count: int, rates: Sequence[float], *, first: float = 0.1, tokens: int = 100, **more: Any
) -> Point:
    """A repeat for each rate, of ``count`` requests at once."""
    repeats = tuple(
        Repeat((request(rate, first=first, tokens=tokens),) * count, more.get("drafts"), more.get("power"))
        for rate in rates
    )
    return Point(text, count, 33, repeats)


def result(rates: Sequence[float] = (50.0, 51.0, 49.0, 50.0, 50.0), **more: Any) -> Result:
    """One text alone, a long input, and four requests side by side."""
    about = {
        "model": "made-up",
        "server": "0.32.0",
        "context": 4096,
        "began": "2026-11-27T20:00:00Z",
        "ended": "2026-11-27T20:01:00Z",
        "command": "gb10 bench 8000",
        "commit": None,
        "gb10": "0.1.0",
        "vllm_client": "vllm 0.32.0",
        "machine": {
            "gpu": {"gpus": ["NVIDIA GB10"], "driver": "580.95", "cuda": 13000},
            "cpu": "Cortex",
            "cores": 20,
            "memory_bytes": 128_000_000_000,
            "arch": "aarch64",
            "kernel": "6.11",
            "os": "Ubuntu 24.04",
        },
    }
    points = (
        point("prose", 1, rates, **more),
        point("long", 1, rates, first=more.get("long_first", 0.5), tokens=1000),
        point("mixed", 4, rates, **more),
    )
    return Result(PLAN.settings(), about, points)


def with_drafts(made: Result) -> Result:
    """The same with speculative decoding and a GPU that says its power."""
    drafts = Drafts(10, 20, 15, (1.0, 0.5))
    power = Power(5, 30.0, 35.0, 2400.0, 2390.0, 60.0)
    points = (
        replace(one, repeats=tuple(replace(repeat, drafts=drafts, power=power) for repeat in one.repeats))
        for one in made.points
    )
    return replace(made, points=tuple(points))
