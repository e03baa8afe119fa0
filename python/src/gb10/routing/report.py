"""What a server runs, by its log: what was planned, what ran, how they differ, and how its model is.

``/v1/gb10/routing`` answers with it, and ``gb10 routing --live`` prints it, both out of the same lines.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gb10 import __version__
from gb10.routing.compare import Ran, Told, compare, live
from gb10.routing.rules import Target
from gb10.routing.table import Route
from gb10.vllm_plugin.log import CANARY, SELF_TEST, SERVING, UNHEALTHY, ours

_ENGINE = re.compile(r"gb10: (engine (?:gb10|stock)\b.*)")
"""`gb10.vllm_plugin.cuda.settings.CudaMode.line`."""

_SELF_TEST = re.compile(
    re.escape(SELF_TEST)
    + r"(?P<comparisons>\d+) comparisons in (?P<seconds>[\d.]+) s, (?P<failed>\d+) failed; "
    r"the one nearest to its limit: (?P<nearest>.+)"
)


def plan(target: Target, rows: Sequence[Route]) -> dict[str, Any]:
    """What a server is about to run, for `serving`."""
    return {"gb10": __version__, "target": str(target), "planned": [asdict(row) for row in rows]}


def serving(planned: Mapping[str, Any], vllm: str) -> str:
    """The line of the log that says what a server is about to run; ``vllm`` is that one's version."""
    return ours(SERVING + json.dumps({"vllm": vllm, **planned}))


@dataclass(frozen=True)
class Report:
    """A server. What its log does not say is None or empty."""

    gb10: str | None = None
    vllm: str | None = None
    target: str | None = None
    engine: str | None = None
    """Whose kernels run on the GPU, and how weights are held."""
    planned: Sequence[Route] = ()
    ran: Sequence[Ran] = ()
    differences: Sequence[str] = ()
    self_test: Mapping[str, Any] | None = None
    canary: str | None = None
    """What the first canary brought."""
    unhealthy: str | None = None
    """Why ``/health`` is red."""

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON can carry it."""
        return asdict(self)

    @property
    def lines(self) -> list[str]:
        """What there is to say of it to people."""
        told = [
            ("engine", self.engine),
            ("target", self.target),
            ("self-test", self.self_test and _words(self.self_test)),
            ("canary", self.canary),
            ("unhealthy", self.unhealthy),
        ]
        found = [f"{name:<18}{text}" for name, text in told if text]
        found += [one.words for one in self.ran] or ["nothing has run yet, or the log does not say it"]
        return found + [f"{'differs':<18}{line}" for line in self.differences]


def _words(found: Mapping[str, Any]) -> str:
    counts = f"{found['comparisons']} comparisons, {found['failed']} failed"
    return f"{counts}; nearest to its limit: {found['nearest']}"


def report(log: Told) -> Report:
    """What a server's log says."""
    said, rows, trouble = _planned(_last(log, SERVING))
    tested = [found for line in log if (found := _SELF_TEST.fullmatch(line))]
    engines = [found[1] for line in log if (found := _ENGINE.match(line))]
    return Report(
        **said,
        engine=engines[-1] if engines else None,
        planned=rows,
        ran=live(log, rows),
        differences=[*trouble, *(compare(rows, log) if rows else ())],
        self_test=_numbers(tested[-1]) if tested else None,
        canary=_last(log, CANARY),
        unhealthy=_last(log, UNHEALTHY),
    )


def _planned(text: str | None) -> tuple[dict[str, Any], list[Route], list[str]]:
    """Versions and target, the planned rows, and what is wrong with the line that says them."""
    try:
        said = json.loads(text or "{}")
        rows = [
            Route(**{**row, "batch": tuple(row["batch"]), "forces": tuple(row["forces"])})
            for row in said.get("planned", ())
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return {}, [], [f"the log's line of what was planned cannot be read: {' '.join(str(error).split())}"]
    return {name: said.get(name) for name in ("gb10", "vllm", "target")}, rows, []


def _last(log: Sequence[str], prefix: str) -> str | None:
    said = [line.removeprefix(prefix).strip() for line in log if line.startswith(prefix)]
    return said[-1] if said else None


def _numbers(found: re.Match[str]) -> dict[str, Any]:
    return {
        "comparisons": int(found["comparisons"]),
        "failed": int(found["failed"]),
        "seconds": float(found["seconds"]),
        "nearest": found["nearest"],
    }
