"""Whether everything in a checkpoint's folder can be opened, before vLLM, transformers or safetensors do.

They open what they find by its name. A named pipe would keep them waiting for ever, and what they say of a
file that they may not read, or of a folder with a file's name, is another thing each time.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from gb10.errors import UserError
from gb10.files import irregular

_READ = (
    ".bin",
    ".gguf",
    ".jinja",
    ".json",
    ".model",
    ".pt",
    ".pth",
    ".py",
    ".safetensors",
    ".tiktoken",
    ".txt",
)
"""Endings of what one of those reads."""


def _entries(folder: Path, depth: int) -> Iterator[tuple[Path, os.stat_result | OSError]]:
    """What lies in a folder and ``depth`` levels below, without what is hidden."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        try:
            found = entry.stat()
        except OSError as error:
            yield entry, error
            continue
        yield entry, found
        if depth and stat.S_ISDIR(found.st_mode) and os.access(entry, os.R_OK | os.X_OK):
            yield from _entries(entry, depth - 1)


def check_entries(folder: Path) -> None:
    """Raise UserError for a pipe, a socket or a device in a checkpoint, and for a file that cannot be read.

    One level below counts as well: additional chat templates and the parts of an embedding model lie there.
    A link that leads nowhere is nothing; who needs the file says so.
    """
    for entry, found in _entries(folder, 1):
        read = entry.suffix in _READ
        if isinstance(found, OSError):
            kind, denied = None, isinstance(found, PermissionError)
        else:
            kind, denied = irregular(found), not os.access(entry, os.R_OK)
            if kind is not None and (read or not stat.S_ISDIR(found.st_mode)):
                raise UserError(f"{entry} is {kind}, not a file; remove it, or fetch the checkpoint again")
        if read and denied:
            raise UserError(f"{entry} cannot be read: permission denied; try: chmod a+r {entry}")
