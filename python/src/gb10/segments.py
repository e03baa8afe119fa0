"""Shared memory of one server: its names, so that whoever is left at the end can remove it.

Python's resource tracker removes what the others leave behind, and vLLM kills it along with them
(kill_process_tree). Then nobody knows the names, which Python makes up. So they begin with that of the
server's scratch folder (`gb10.serve.scratch`).

Nothing but the standard library, since `gb10.serve.keeper` has nothing else.
"""

import contextlib
import os

FOLDER = "/dev/shm"
"""Where Linux has POSIX shared memory."""


def prefix(folder: str) -> str:
    """What the names of a server's segments begin with; ``folder`` is its scratch folder."""
    return f"{os.path.basename(folder)}-"  # noqa: PTH119 (pathlib would double the time of the keeper's start)


def remove(folder: str) -> None:
    """Remove the segments of the server with this scratch folder. Nobody may need them any more."""
    begin = prefix(folder)
    with contextlib.suppress(OSError):
        for entry in os.scandir(FOLDER):
            if entry.name.startswith(begin):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)  # noqa: PTH108
