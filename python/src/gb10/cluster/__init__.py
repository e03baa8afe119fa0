"""``gb10 cluster``: one engine on several hosts, each with its share of the model; planned, checked and run."""

from gb10.cluster.command import run

__all__ = ["run"]
