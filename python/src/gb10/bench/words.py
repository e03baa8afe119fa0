"""Command lines as they are shown and kept: without secrets, and without the user's folder."""

import re
from pathlib import Path

_VALUE = r"('[^']*'|\"[^\"]*\"|[^\s'\"]+)"
_OPTIONS = re.compile(rf"(--(?:api-key|hf-token)(?:=|\s+)){_VALUE}")
_VARIABLES = re.compile(
    rf"(\b[A-Za-z0-9_]*(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)[A-Za-z0-9_]*=){_VALUE}", re.I
)


def told(command: str) -> str:
    """The command without the values of --api-key, --hf-token and of variables named like keys.

    The home folder is ~.
    """
    home = str(Path.home())
    shown = command.replace(home, "~") if len(home) > 1 else command
    return _VARIABLES.sub(r"\1***", _OPTIONS.sub(r"\1***", shown))
