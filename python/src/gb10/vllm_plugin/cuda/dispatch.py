"""What really ran: the first dispatch of every operation by every kernel, one line of the log each.

`gb10.routing.compare` reads the lines and holds the routing table against them.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from gb10.vllm_plugin.log import ours

logger = logging.getLogger("vllm.gb10")

PREFIX = "gb10: first dispatch: "

ENGINE = "gb10: engine gb10"
"""How the line begins that says that our engine is on (`settings.CudaMode.line`)."""


@dataclass(frozen=True)
class Dispatch:
    """The first run of an operation by a kernel, and its number of tokens."""

    operation: str
    kernel: str
    tokens: int

    @property
    def ours(self) -> bool:
        """Whether the kernel is ours, not vLLM's where ours does not fit."""
        return self.kernel != "vLLM"

    @property
    def line(self) -> str:
        return f"{PREFIX}{self.operation} ran {self.kernel} with {self.tokens} tokens"


_seen: dict[tuple[str, str], Dispatch] = {}
_silent = False


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Record nothing: for calls that serve no request."""
    global _silent
    before, _silent = _silent, True
    try:
        yield
    finally:
        _silent = before


def ran(operation: str, kernel: str, tokens: int) -> None:
    """Record that ``kernel`` runs ``operation`` for so many tokens. Cheap after the first call of a pair.

    ``operation`` is a name of the routing table (`gb10.routing.rules`: nvfp4_linear, nvfp4_moe, dense,
    lm_head, router, norm, attention_front, gdn_decode), ``kernel`` what its rows call the backend, without
    "gb10": fp8_gemv, moe_decode. To be called in an operator's Python, not in code that torch.compile traces.
    """
    key = (operation, kernel)
    if key not in _seen and not _silent:
        _seen[key] = Dispatch(operation, kernel, tokens)
        logger.info("%s", ours(_seen[key].line))


def record() -> tuple[Dispatch, ...]:
    """What this process dispatched so far, in order."""
    return tuple(_seen.values())
