"""``gb10 serve``: check everything first, then run vLLM and say when it answers."""

from gb10.serve.run import run

__all__ = ["run"]
