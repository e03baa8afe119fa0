"""Make a folder all at once: with everything in it, or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gb10.errors import UserError

_FILE_MODE = 0o644
_FOLDER_MODE = 0o755


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
