"""How a process of vLLM tells `gb10 serve` that a checkpoint is refused. Light: no torch, no vLLM."""

import logging
from typing import NoReturn

from gb10.errors import UserError
from gb10.vllm_plugin.log import ours

PREFIX = "gb10: refused: "
"""What follows in that line of vLLM's log is the message for the user; the program ends with status 2."""

logger = logging.getLogger("vllm.gb10")
"""Below vLLM's own, so that the line is in the log whatever process writes it."""


class Refused(UserError):
    """A checkpoint that must not be served. The message is one line."""


def refuse(message: str) -> NoReturn:
    """Write the line that `gb10 serve` looks for, and raise Refused."""
    logger.error("%s%s", ours(PREFIX), message)
    raise Refused(f"{PREFIX}{message}")
