"""What is asked of the canary. Light: no torch, no vLLM."""

import os
from collections.abc import Mapping
from enum import StrEnum

from gb10.errors import UserError
from gb10.units import parse_decimal

CANARY_NAME = "GB10_CANARY"
INTERVAL_NAME = "GB10_CANARY_INTERVAL"
INTERVAL = 60.0
"""Seconds between two canaries of an idle server, where nobody says otherwise."""


class Canary(StrEnum):
    """What becomes of a server whose model does not answer sense."""

    REFUSE = "refuse"
    REPORT = "report"
    OFF = "off"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Canary":
        """GB10_CANARY; unset or empty means REFUSE. Raises UserError for a wrong word."""
        text = environ.get(CANARY_NAME, "") or cls.REFUSE
        try:
            return cls(text)
        except ValueError:
            raise UserError(f"{CANARY_NAME}={text!r} is none of: {', '.join(cls)}") from None


def interval(environ: Mapping[str, str] = os.environ) -> float:
    """GB10_CANARY_INTERVAL in seconds, 0: never again. Raises UserError for what is no number."""
    text = environ.get(INTERVAL_NAME, "")
    try:
        return parse_decimal(text) if text else INTERVAL
    except ValueError:
        raise UserError(f"{INTERVAL_NAME}={text!r} is not a number of seconds, such as 60 or 0") from None
