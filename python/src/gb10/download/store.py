"""Fetch one file into the hub's cache: resumed where it was, compared, and then given its name.

Nothing here asks the hub what the file is: its digest is the list's. huggingface_hub's ``hf_hub_download``
takes it from the file's own answer, and writes where that says.
"""

import contextlib
import errno
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gb10.download import transfer
from gb10.download.listing import File
from gb10.download.place import Place, free, has, text
from gb10.download.told import hub
from gb10.download.transfer import Note
from gb10.errors import UserError

_PIECE = 1 << 22


class DamagedError(UserError):
    """What came, or what lies in the cache, is not what the hub has."""


class StoppedError(Exception):
    """Another thread failed, or a signal asked for the end."""


class _TooLongError(Exception):
    """More comes than the file has."""


class _Part:
    """A file that is appended to, ``size`` bytes at most, and raises when it is time to end."""

    def __init__(self, file: IO[bytes], size: int, stop: threading.Event) -> None:
        self._file, self._size, self._stop = file, size, stop
        self.have = file.tell()

    def write(self, data: bytes) -> None:
        if self._stop.is_set():
            raise StoppedError
        if self.have + len(data) > self._size:
            raise _TooLongError
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        self.have += len(data)

    def restart(self) -> None:
        self._file.truncate(0)
        self.have = 0


def _begun(like: str, size: int) -> "hashlib._Hash":
    """A digest of the kind that ``like`` is: SHA-256, or Git's SHA-1."""
    if len(like) == hashlib.sha256().digest_size * 2:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def digest_of_bytes(content: bytes, like: str) -> str:
    """`digest_of` what is in memory."""
    found = _begun(like, len(content))
    found.update(content)
    return found.hexdigest()


def digest_of(
    path: Path,
    like: str,
    stop: threading.Event | None = None,
    seen: Callable[[int], None] = lambda _: None,
) -> str:
    """The digest of a file, of the kind that ``like`` is. ``seen`` gets how many bytes were read more."""
    found = _begun(like, path.stat().st_size)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            if stop is not None and stop.is_set():
                raise StoppedError
            found.update(piece)
            seen(len(piece))
    return found.hexdigest()


@contextmanager
def locked(repo: Path, digest: str, name: str, note: Note) -> Iterator[None]:
    """The lock that huggingface_hub takes for this file, too. ``repo``: the model's folder in the cache."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined, unused-ignore]

    lock = repo.parent / ".locks" / repo.name / f"{digest}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(lock, timeout=1))
        except TimeoutError:
            note(f"{name} is being fetched by another process; waiting for that")
            stack.enter_context(WeakFileLock(lock))
        yield


def _append(place: Place, file: File, stop: threading.Event, note: Note) -> None:
    """Fetch what is missing of a file's bytes."""
    part = place.part(file)
    part.parent.mkdir(parents=True, exist_ok=True)
    if part.exists() and not (part.is_file() and part.stat().st_size <= file.size):
        part.unlink()

    def wait(seconds: float) -> None:
        if stop.wait(seconds):
            raise StoppedError

    try:
        # Not buffered: what came is on the disk, whatever ends this process.
        with part.open("ab", buffering=0) as opened:
            span = transfer.Span(place.name, place.commit, file.name, 0, file.size, whole=True)
            transfer.receive(span, _Part(opened, file.size, stop), wait, note)
    except _TooLongError:
        part.unlink()
        raise DamagedError(
            f"model {place.name}: {hub()} sends more of {file.name} than its {file.size} "
            "bytes; thrown away: run it again, or take another HF_ENDPOINT"
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk of {place.repo.parent} is full ({text(free(part.parent))} free); free some, "
                "or set HF_HOME to a folder on another disk, and run it again: what was fetched is kept"
            ) from None
        raise


def _named(place: Place, file: File, *, new: bool) -> None:
    """Give bytes that are there their name; a copy, or the file itself, where there are no links."""
    from huggingface_hub.file_download import _create_symlink

    name = place.snapshot / file.name
    name.parent.mkdir(parents=True, exist_ok=True)
    _create_symlink(str(place.blob(file)), str(name), new_blob=new)


def _is_right(place: Place, file: File, stop: threading.Event) -> bool:
    """Whether bytes that are there are a file's. What has its name was compared when it got that."""
    if place.blob(file).stat().st_size != file.size:
        return False
    named = has(place.snapshot / file.name, file.size)
    return named or digest_of(place.blob(file), file.digest, stop) == file.digest


def store(place: Place, file: File, stop: threading.Event, note: Note) -> Path:
    """Fetch a file, compare it, and give it its name; its path. Raises UserError, and what `told` tells."""
    part, blob = place.part(file), place.blob(file)
    with locked(place.repo, file.digest, file.name, note):
        if blob.exists() and not _is_right(place, file, stop):
            note(f"{file.name}: what was there of it was damaged; fetching it anew")
            blob.unlink()
        new = not blob.exists()
        if new:
            begun = part.exists() and part.stat().st_size > 0
            _append(place, file, stop, note)
            found = digest_of(part, file.digest, stop)
            if found != file.digest and begun:
                note(f"{file.name}: what was there of it was damaged; fetching it anew")
                part.unlink()
                _append(place, file, stop, note)
                found = digest_of(part, file.digest, stop)
            if found != file.digest:
                part.unlink()
                raise DamagedError(
                    f"model {place.name}: {file.name} came damaged (digest {found[:12]}, the hub says "
                    f"{file.digest[:12]}); run it again: what else was fetched is kept"
                )
            part.chmod(0o644)
            part.rename(blob)
        if new or not has(place.snapshot / file.name, file.size):
            _named(place, file, new=new)
    return place.snapshot / file.name
