"""What the process of a unit tells its service manager (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Of the service manager, and for the unit's first process alone."""


class Manager:
    """The service manager; one that is not there is told nothing."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._address = variables.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        self._status = ""

    def say(self, *lines: str) -> None:
        """Send assignments, such as ``READY=1``."""
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.sendto("\n".join(lines).encode(errors="replace"), self._address)

    def status(self, words: str) -> None:
        """What ``systemctl status`` shows of the service, where that is new."""
        if words != self._status:
            self._status = words
            self.say(f"STATUS={words}")


def watchdog(variables: Mapping[str, str]) -> float | None:
    """Seconds in which the manager wants to be told that all is well; None where it does not."""
    text, pid = variables.get("WATCHDOG_USEC", ""), variables.get("WATCHDOG_PID", "")
    if not text.isascii() or not text.isdigit() or int(text) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(text) / 1e6
