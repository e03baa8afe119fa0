"""A guard: does this vLLM still have what the plugin builds on?"""

import importlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass

WRITTEN_FOR = "0.32.0"


class IncompatibleVllmError(RuntimeError):
    """vLLM lacks something that the plugin uses, or has changed its shape."""


@dataclass(frozen=True)
class Need:
    """One attribute of vLLM, with its parameters' names where the plugin relies on them: "self, layer, x"."""

    module: str
    attribute: str
    parameters: str | None = None

    @property
    def name(self) -> str:
        return f"{self.module}.{self.attribute}"

    def problem(self) -> str | None:
        """Return what is wrong with this attribute, or None."""
        try:
            found: object = importlib.import_module(self.module)
        except ImportError as error:
            return f"cannot import {self.module} ({error})"
        for part in self.attribute.split("."):
            if not hasattr(found, part):
                return f"{self.name} is gone"
            found = getattr(found, part)
        if self.parameters is None:
            return None
        if not callable(found):
            return f"{self.name} is no longer a function"
        present = ", ".join(inspect.signature(found).parameters)
        if present != self.parameters:
            return f"{self.name} takes ({present}), expected ({self.parameters})"
        return None


def check(version: str, needs: Iterable[Need]) -> None:
    """Raise IncompatibleVllmError when the vLLM of this `version` lacks any of `needs`.

    All needs are looked at, so that one message names all that moved.
    """
    problems = [problem for need in needs if (problem := need.problem()) is not None]
    if problems:
        raise IncompatibleVllmError(
            f"gb10's plugin was written for vLLM {WRITTEN_FOR} and cannot run in vLLM {version}: "
            f"{'; '.join(problems)}. Install that version, "
            "or leave the plugin out with VLLM_PLUGINS=''."
        )
