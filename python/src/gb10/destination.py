"""Where a file that a user names is written, when it is made beside and takes the name at the end."""

import errno
import os
from pathlib import Path

from gb10.files import irregular


def destination(target: Path) -> Path:
    """The place of the file, behind a link what that leads to.

    Raises OSError for a device, a pipe or a folder, whose text says so: a file in their place would take them
    away from everybody.
    """
    place = Path(os.path.realpath(target))
    try:
        kind = irregular(target.stat())
    except FileNotFoundError:
        return place
    if kind is not None:
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(target))
    return place
