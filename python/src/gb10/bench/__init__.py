"""``gb10 bench``: how fast a running server answers, how that compares, and reports of it."""

from gb10.bench.command import run

__all__ = ["run"]
