"""What is wrong: one line that says it, and one that mends it."""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is."""

    WARNING = "warning"
    """A server runs, but slower or less safely than it could."""
    STOPS = "stops"
    """No server starts, or it would answer wrongly."""


@dataclass(frozen=True)
class Finding:
    """A problem. ``check`` is its name, which stays the same from version to version."""

    check: str
    severity: Severity
    what: str
    mend: str
    """What to do, or a command."""


def warning(check: str, what: str, mend: str) -> Finding:
    """A server runs, but slower or less safely than it could."""
    return Finding(check, Severity.WARNING, what, mend)


def stops(check: str, what: str, mend: str) -> Finding:
    """No server starts, or it would answer wrongly."""
    return Finding(check, Severity.STOPS, what, mend)
