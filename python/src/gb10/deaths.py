"""How processes ended: a file with a line of JSON for each event. `gb10.serve.cause` reads it.

Nothing but the standard library, since `gb10.serve.keeper` has nothing else.
"""

import contextlib
import json
import os
from collections.abc import Mapping


def record(file: str, event: Mapping[str, object]) -> None:
    """Add a line to ``file``. What cannot be written is lost: who dies has no time for it."""
    with contextlib.suppress(OSError):
        handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, json.dumps(event).encode() + b"\n")
        finally:
            os.close(handle)
