"""Command lines as they are shown and kept: without secrets, and without the user's folder."""

import re
from pathlib import Path

_SECRET = re.compile(r"(--(?:api-key|hf-token)(?:=|\s+))('[^']*'|\"[^\"]*\"|[^\s'\"]+)")


def told(command: str) -> str:
    """The command without the values of --api-key and --hf-token, and with ~ for the home folder."""
    home = str(Path.home())
    shown = command.replace(home, "~") if len(home) > 1 else command
    return _SECRET.sub(r"\1***", shown)
