"""Servers that run already: what runs in them is what was planned."""

from gb10.doctor.facts import Facts
from gb10.doctor.findings import Finding, stops, warning


def check(facts: Facts) -> list[Finding]:
    """Each of them."""
    found = []
    for server in facts.servers:
        if server.unhealthy:
            found.append(
                stops(
                    "server-unhealthy",
                    f"a server of yours answers wrongly: {server.unhealthy}",
                    "end it, and start it with --engine stock; docs/health.md",
                )
            )
        if server.failed:
            found.append(
                stops(
                    "self-test",
                    f"{server.failed} comparisons of a server's self-test failed",
                    "end it, and start it with --engine stock; docs/engine.md",
                )
            )
        found += [
            warning(
                "kernel-differs",
                line,
                "gb10 routing --live says what runs; force one with --route OP=BACKEND",
            )
            for line in server.differences
        ]
    return found


def says(facts: Facts) -> str:
    """One line for each server: the kernel that ran each operation first."""
    if not facts.servers:
        return "none of yours runs"
    lines = []
    for server in facts.servers:
        ran = "; ".join(" ".join(words.split()) for words in server.ran) or "nothing has run yet"
        lines.append(ran)
    return " | ".join(lines)
