"""What the doctor says: to people, and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import typer

from gb10.arguments import printable
from gb10.doctor.checks import AREAS
from gb10.doctor.facts import Facts
from gb10.doctor.findings import Finding, Severity

OK = "ok"
_COLOURS = {OK: typer.colors.GREEN, Severity.WARNING: typer.colors.YELLOW, Severity.STOPS: typer.colors.RED}
_WORD, _NAME = 8, 24
"""Columns of the two words before each line."""


@dataclass(frozen=True)
class Area:
    """What was seen of one thing, and what is wrong with it."""

    name: str
    says: str
    findings: tuple[Finding, ...]


def judge(facts: Facts) -> list[Area]:
    """All checks."""
    return [Area(name, says(facts), tuple(check(facts))) for name, (check, says) in AREAS.items()]


def findings(areas: list[Area]) -> list[Finding]:
    """All that is wrong."""
    return [found for area in areas for found in area.findings]


def status(found: list[Finding]) -> int:
    """The exit status: 0, 1 for warnings, 2 where something stops a server."""
    severities = {one.severity for one in found}
    return 2 if Severity.STOPS in severities else 1 if severities else 0


def as_json(facts: Facts, areas: list[Area]) -> dict[str, Any]:
    """All of it. The names of fields, checks and areas stay, as `gb10.doctor.facts.SCHEMA` says."""
    found = findings(areas)
    return {
        "schema": facts.schema_version,
        "gb10": facts.gb10,
        "verdict": (OK, "warnings", "stops")[status(found)],
        "exit_status": status(found),
        "findings": [asdict(one) | {"area": area.name} for area in areas for one in area.findings],
        "areas": {area.name: area.says for area in areas},
        "skipped": facts.skipped,
        "machine": asdict(facts),
    }


def _line(word: str, name: str, text: str, colours: bool) -> str:
    padded = f"{word:{_WORD}}"
    if colours and word in _COLOURS:
        padded = typer.style(padded, fg=_COLOURS[word])
    return f"{padded} {printable(name):{_NAME}} {printable(text)}".rstrip()


def _count(found: list[Finding]) -> str:
    stopping = sum(one.severity is Severity.STOPS for one in found)
    warnings = len(found) - stopping
    parts = []
    if stopping:
        parts.append(f"{stopping} {'problem stops' if stopping == 1 else 'problems stop'} a server")
    if warnings:
        parts.append(f"{warnings} {'warning' if warnings == 1 else 'warnings'}")
    return ", ".join(parts) or "nothing is wrong"


def lines(facts: Facts, areas: list[Area], *, colours: bool) -> Iterator[str]:
    """For people: a line for what was seen of each thing, and two for each problem."""
    system = facts.system
    inside = f", in a container ({system.container})" if system.container else ""
    names = (system.product, system.architecture, system.distribution, f"Linux {system.kernel}")
    yield printable(f"gb10 doctor {facts.gb10}: {', '.join(filter(None, names))}{inside}") + "\n"
    for area in areas:
        yield _line("" if area.findings else OK, area.name, area.says, colours)
        for one in area.findings:
            yield _line(one.severity, one.check, one.what, colours)
            yield _line("", "", one.mend, colours)
    for name, why in facts.skipped.items():
        yield _line("skipped", name, why, colours)
    yield f"\n{_count(findings(areas))}"
