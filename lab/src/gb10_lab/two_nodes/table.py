"""The runs as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from gb10_lab.two_nodes.cases import compare

_PAIRS = (("nodes", "one-host"), ("slow", "one-host"), ("one-host", "one"), ("nodes", "one"))
"""Forms whose tokens stand beside each other."""


def lines(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each form, each comparison of two and each fault."""
    good = {run["case"]: run for run in runs if "failed" not in run}
    out = [f"{run['case']}: {run['failed']}" for run in runs if "failed" in run]
    for name, run in good.items():
        if "tokens" in run:
            speeds = ", ".join(f"{speed} {how}" for how, speed in run["tokens_per_second"].items())
            ends = "; ".join(f"{who} {_end(end)}" for who, end in run["stop"].items())
            out.append(f"{name}: ready after {run['ready_seconds']} s, tokens/s {speeds}; SIGTERM: {ends}")
    for one, other in _PAIRS:
        if one in good and other in good:
            for what in ("tokens", "tokens_together"):
                found = compare(good[one][what], good[other][what])
                at = [first for first in found["first"] if first is not None]
                where = f", first at token {min(at) + 1}" if at else ""
                out.append(f"{one} beside {other}, {what}: {found['differ']} of {found['of']} differ{where}")
    for name, run in good.items():
        if "clients" not in run:
            continue
        out.append(f"{name}: {run['what']}")
        for who, got in run["clients"].items():
            out.append(f"  {who}: {_seconds(got['seconds'], run['limit'])} {got['got']}")
        for who in ("head", "other"):
            out.append(f"  {who}: {_end(run[who], run['limit'])}" + _sigterm(run, who))
            out += [f"    | {line}" for line in run[f"{who}_says"]]
    return out


def _seconds(seconds: float | None, limit: float) -> str:
    return f"not within {limit:g} s:" if seconds is None else f"after {seconds} s:"


def _end(end: Mapping[str, Any], limit: float = 20) -> str:
    if end["seconds"] is None:
        return f"goes on for {limit:g} s"
    left = f", left: {', '.join(end['left'])}" if end["left"] else ""
    return f"status {end['status']} after {end['seconds']} s{left}"


def _sigterm(run: Mapping[str, Any], who: str) -> str:
    end = run.get("sigterm", {}).get(who)
    return f"; SIGTERM then: {_end(end)}" if end else ""
