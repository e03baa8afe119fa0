"""``gb10 cluster``: one model on two hosts; what each of them runs, checked before, and run over ssh.

What the hosts do together is `gb10 serve` with vLLM's own words for several nodes (`gb10.serve.nodes`).
"""

from gb10.cluster.command import run

__all__ = ["run"]
