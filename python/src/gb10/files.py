"""Write files and folders whole or not at all; read files that are none but files; JSON, hashes.

A named pipe (FIFO) waits for a writer when it is opened, a device may never end: whatever a checkpoint or a
user names is opened by `open_regular`, and what a library opens for us is looked at by `irregular` before.
"""

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from gb10.errors import UserError

_FILE_MODE = 0o644
_FOLDER_MODE = 0o755
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def irregular(found: os.stat_result) -> str | None:
    """What it is that is no file ("a named pipe (FIFO)"); None for a file."""
    return None if stat.S_ISREG(found.st_mode) else _KINDS.get(stat.S_IFMT(found.st_mode), "no file")


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading, never waiting. Raises OSError, whose text says so, for what is no file."""
    # Looked at first: opening a device may do something.
    kind = irregular(path.stat())
    if kind is None:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 (it is the result)
        kind = irregular(os.fstat(file.fileno()))
        if kind is None:
            return file
        file.close()
    raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises OSError as `open_regular` does."""
    with open_regular(path) as file:
        return file.read()


def sha256(path: Path) -> str:
    """Give the SHA-256 of a file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def destination(target: Path, option: str = "") -> Path:
    """The place of a file to be written: behind a link, what that leads to. ``option``: what named it.

    Raises UserError for a device, a pipe or a folder: a file in their place would take them away from
    everybody.
    """
    try:
        kind = irregular(target.stat())
    except OSError:
        # What cannot be looked at is not there, or cannot be written: who writes it says so.
        kind = None
    if kind is not None:
        raise UserError(f"{option} {target}".strip() + f": it is {kind}, not a file; give a file")
    return Path(os.path.realpath(target))


def nearest(path: Path) -> Path:
    """The path, or the nearest above it that is there."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def check_writable(target: Path, option: str = "") -> None:
    """Raise UserError where `replacing` could not write: before the work, not after it. Makes nothing."""
    folder = nearest(destination(target, option).parent)
    if not folder.is_dir():
        raise UserError(f"{option} {target}".strip() + f": {folder} is not a folder; give another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{option} {target}".strip() + f": {folder} cannot be written to; give another place")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary file, which takes the place of `target` (`destination`) when the block ends well.

    It has the ending of `target`: some writers choose the format by it. Mode: that of the file that was
    there, else 0644.

    Raises UserError when it cannot be written.
    """
    place = destination(target)
    part = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{place.stem}.", suffix=target.suffix, dir=place.parent)
        os.close(handle)
        part = Path(name)
        yield part
        part.chmod(stat.S_IMODE(place.stat().st_mode) if place.exists() else _FILE_MODE)
        part.rename(place)
    except FileExistsError as error:
        raise UserError(f"cannot write {target}: {error.filename} is not a folder") from error
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError when that is not possible."""
    try:
        return json.loads(read_bytes(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def write_json(path: Path, content: object, *, indent: int | None = 2) -> None:
    """Write a JSON file with mode 0644, all or nothing. Raises UserError when it cannot be written."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out`, and move it to `out` when the `with` block ends well.

    An empty folder of that name is replaced. A failure leaves nothing. Files become readable for everyone
    (safetensors alone would give 0600).

    Raises UserError when `out` exists and is not an empty folder, or cannot be written.
    """
    out = out.absolute()
    _check_free(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    except OSError as error:
        raise UserError(f"cannot write to {out.parent}: {error.strerror}; choose another --out") from error
    try:
        yield part
        for path in part.iterdir():
            path.chmod(_FILE_MODE)
        part.chmod(_FOLDER_MODE)
        part.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_free(out: Path) -> None:
    try:
        taken = (out.exists() or out.is_symlink()) and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise UserError(f"cannot look into {out}: {error.strerror}; choose another --out") from error
    if taken:
        raise UserError(f"{out} exists and is not an empty folder; remove it or choose another --out")
