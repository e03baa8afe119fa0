"""Where a server puts its files: a temporary folder that goes with it, and the log that stays."""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from gb10 import segments
from gb10.errors import UserError

PREFIX = "gb10-serve-"
OWNER = ".owner"
"""File in a scratch folder that the server holds a lock on while it lives."""

KEPT_LOGS = 20
SOCKET_PATH_LIMIT = 107
"""Bytes that the path of a Unix socket may have (unix(7): sun_path)."""

_SOCKET_NAME = 37
"""A slash and the UUID that vLLM adds."""
_RPC_FOLDER = "VLLM_RPC_BASE_PATH"
_SHORT_FOLDERS = ("/tmp", "/dev/shm", "/var/tmp")
_ROOM = 256 * 1024
"""Bytes that must fit into a new log: what vLLM writes at a start."""


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _temporary() -> Path:
    """The temporary folder. Raises UserError when there is none."""
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        raise UserError(
            f"no temporary folder can be written ({_reason(error)}); set TMPDIR to one that can"
        ) from None


def _ours(folder: Path) -> bool:
    """Whether this is a folder, not a link, that belongs to this user."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _locked(path: Path) -> bool:
    """Whether somebody holds the lock on a file; True as well when that cannot be said."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


class Scratch:
    """A temporary folder with a lock on it. Raises UserError when none can be made.

    ``owner`` is the locked file: a process that inherits it owns the folder as well.
    """

    def __init__(self) -> None:
        parent = _temporary()
        self._sockets: Path | None = None
        made = None
        try:
            made = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
            self.path = Path(made)
            new = self.path / f"{OWNER}.new"
            self.owner: IO[bytes] = new.open("wb")
            fcntl.flock(self.owner, fcntl.LOCK_EX)
            # Only now: who finds it without a lock removes the folder.
            new.rename(self.path / OWNER)
        except OSError as error:
            if made is not None:
                shutil.rmtree(made, ignore_errors=True)
            raise UserError(
                f"cannot make a temporary folder in {parent}: {_reason(error)}; "
                "free some space, or set TMPDIR"
            ) from None

    def variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Variables that make vLLM put its files here. Raises UserError when its sockets fit nowhere."""
        given = environment.get(_RPC_FOLDER)
        if given:
            if len(os.fsencode(given)) + _SOCKET_NAME > SOCKET_PATH_LIMIT:
                raise UserError(
                    f"{_RPC_FOLDER}={given} is too long for a socket "
                    f"({SOCKET_PATH_LIMIT} bytes with its name); give a shorter folder, or unset it"
                )
            return {"TMPDIR": str(self.path)}
        if len(os.fsencode(self.path)) + _SOCKET_NAME <= SOCKET_PATH_LIMIT:
            return {"TMPDIR": str(self.path)}
        self._sockets = self._short_folder()
        return {"TMPDIR": str(self.path), _RPC_FOLDER: str(self._sockets)}

    def _short_folder(self) -> Path:
        for parent in filter(None, (os.environ.get("XDG_RUNTIME_DIR"), *_SHORT_FOLDERS)):
            with contextlib.suppress(OSError):
                found = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
                if len(os.fsencode(found)) + _SOCKET_NAME <= SOCKET_PATH_LIMIT:
                    # Found by the cleaning of a later start, whatever becomes of us.
                    (found / OWNER).symlink_to(self.path / OWNER)
                    return found
                found.rmdir()
        raise UserError(
            f"the temporary folder {self.path.parent} is too long for a socket "
            f"({SOCKET_PATH_LIMIT} bytes with its name); set TMPDIR to a shorter one"
        )

    @property
    def folders(self) -> list[str]:
        """What there is to remove in the end."""
        return [str(folder) for folder in (self._sockets, self.path) if folder is not None]

    def remove(self) -> None:
        """Remove the folder, and the server's shared memory. Safe to call twice."""
        segments.remove(str(self.path))
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)
        self.owner.close()


def clear_left_overs() -> None:
    """Remove scratch folders of this user whose server is gone, and its shared memory."""
    parents = {_temporary(), *map(Path, filter(None, (os.environ.get("XDG_RUNTIME_DIR"), *_SHORT_FOLDERS)))}
    for parent in parents:
        with contextlib.suppress(OSError):
            for folder in parent.glob(f"{PREFIX}*"):
                with contextlib.suppress(OSError):
                    owner = folder / OWNER
                    # A link that leads nowhere: what it belonged to is removed already.
                    gone = owner.is_symlink() and not owner.exists()
                    if _ours(folder) and (gone or (owner.exists() and not _locked(owner))):
                        segments.remove(str(folder))
                        shutil.rmtree(folder, ignore_errors=True)


def usable_home(environment: Mapping[str, str]) -> dict[str, str]:
    """HOME, and HF_HOME where the models are, for a user whose home cannot be written; else nothing.

    Such a user (a container with an unknown uid, a read-only home) has no place for what vLLM and others keep
    in ~/.cache. They get a folder in the temporary folder. Raises UserError when that cannot be had.
    """
    home = os.path.expanduser("~")  # noqa: PTH111 (Path.home() raises where there is none)
    cache = environment.get("XDG_CACHE_HOME") or f"{home}/.cache"
    if home != "~" and any(os.access(folder, os.W_OK) for folder in (home, cache)):
        return {}
    made = _temporary() / f"gb10-home-{os.getuid()}"
    try:
        _own_folder(made)
    except OSError as error:
        raise UserError(
            f"HOME ({home}) cannot be written, nor {made} ({_reason(error)}); set HOME to a folder that can"
        ) from None
    variables = {"HOME": str(made)}
    if home != "~" and not environment.get("HF_HOME"):
        variables["HF_HOME"] = f"{cache}/huggingface"
    return variables


def _own_folder(folder: Path) -> None:
    """Make a private folder in a public place. Raises OSError when it is another user's."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if not _ours(folder):
        raise PermissionError(errno.EPERM, "it is another user's")


def _new_log(folder: Path) -> tuple[Path, IO[bytes]]:
    """A new, locked log file in ``folder``. Raises OSError, and leaves nothing, when it could not grow."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-"
    handle, path = tempfile.mkstemp(prefix=name, suffix=".log", dir=folder)
    file = os.fdopen(handle, "wb", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        # A file can be made where nothing can be written any more: a full disk, a quota.
        if file.write(bytes(_ROOM)) < _ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file)
        file.seek(0)
        file.truncate()
    except OSError:
        file.close()
        Path(path).unlink(missing_ok=True)
        raise
    return Path(path), file


def _spare_logs() -> Path:
    """Where logs go when the folder for them cannot be written."""
    return _temporary() / f"gb10-logs-{os.getuid()}"


def running_logs(folder: Path | None) -> list[Path]:
    """The logs of this user's running servers, the oldest first."""
    spare = _spare_logs()
    folders = [*([folder] if folder else []), *([spare] if spare.exists() and _ours(spare) else [])]
    found = [path for place in folders for path in place.glob("*.log") if path.is_file() and _locked(path)]
    return sorted(found, key=lambda path: path.name)


def open_log(folder: Path | None) -> tuple[Path, IO[bytes]]:
    """A new log file in ``folder``; the oldest beyond twenty are removed, none of a running server.

    In the temporary folder where ``folder`` is None or cannot be written. The file stays locked as long as
    any process has it open. Raises UserError when there is no room in either.
    """
    spare = _spare_logs()
    try:
        if folder is None:
            raise FileNotFoundError(errno.ENOENT, "no home folder")
        path, file = _new_log(folder)
    except OSError as error:
        try:
            _own_folder(spare)
            path, file = _new_log(spare)
        except OSError as second:
            raise UserError(
                f"no log can be written, neither in {folder or 'a home folder'} ({_reason(error)}) nor in "
                f"{spare} ({_reason(second)}); free some space, or set XDG_STATE_HOME or TMPDIR"
            ) from None
    for old in sorted(path.parent.glob("*.log"))[:-KEPT_LOGS]:
        if not _locked(old):
            old.unlink(missing_ok=True)
    return path, file
