"""``gb10 cluster``: one engine on several hosts, each with a share of the model; planned, checked, run."""

from gb10.cluster.command import run

__all__ = ["run"]
