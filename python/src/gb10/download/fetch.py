"""Fetch files into the cache of the hub: several at once, each resumed where it was, each compared."""

import contextlib
import errno
import hashlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gb10.download.listing import File
from gb10.download.plan import Wanted, free, is_weights, text
from gb10.download.told import told
from gb10.errors import UserError
from gb10.files import replacing

_THREADS = 4
_TRIES, _PAUSE = 5, 0.5
"""How often a file is asked for again while no byte of it comes; seconds before that, doubled each time.

For what http_get does not try again itself: connections that are reset, and errors of the server.
"""
_POLL = 0.1
_WINDOW = 10.0
"""Seconds over which the rate is taken."""
_PIECE = 1 << 22

Note = Callable[[str], None]
"""Takes a line for the user."""
Show = Callable[[str], None]
"""Takes how far it is; called often."""


class DamagedError(UserError):
    """What came, or what lies in the cache, is not what the hub has."""


class _StoppedError(Exception):
    """Another thread failed, or a signal asked for the end."""


class _TooLongError(Exception):
    """More comes than the file has."""


class _Part:
    """A file that is appended to, ``size`` bytes at most, and raises when it is time to end."""

    def __init__(self, file: IO[bytes], size: int, stop: threading.Event) -> None:
        self._file, self._size, self._stop = file, size, stop
        self.tell, self.seek, self.truncate = file.tell, file.seek, file.truncate

    def write(self, data: bytes) -> int:
        if self._stop.is_set():
            raise _StoppedError
        if self._file.tell() + len(data) > self._size:
            raise _TooLongError
        return self._file.write(data)


def digest_of(
    path: Path,
    like: str,
    stop: threading.Event | None = None,
    seen: Callable[[int], None] = lambda _: None,
) -> str:
    """The digest of a file, of the kind that ``like`` is. ``seen`` gets how many bytes were read more."""
    if len(like) == hashlib.sha256().digest_size * 2:
        found = hashlib.sha256()
    else:
        found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            if stop is not None and stop.is_set():
                raise _StoppedError
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


def _append(wanted: Wanted, file: File, stop: threading.Event) -> None:
    """Fetch what is missing of a file's bytes."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, httpx  # type: ignore[attr-defined, unused-ignore]

    if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        raise UserError(
            f"model {wanted.name}: {file.name} has {text(file.size)}, which the hub gives by Xet alone; "
            f"fetch it with: hf download {wanted.name}"
        )
    part = wanted.part(file)
    part.parent.mkdir(parents=True, exist_ok=True)
    if part.exists() and part.stat().st_size > file.size:
        part.unlink()
    url = hf_hub_url(wanted.name, file.name, revision=wanted.commit)
    # Compressed, a part would not be bytes of the file.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    tried = 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        try:
            with part.open("ab") as opened:
                http_get(
                    url,
                    _Part(opened, file.size, stop),  # type: ignore[arg-type]
                    resume_size=have,
                    headers=headers,
                    expected_size=file.size,
                )
            return
        except _TooLongError:
            part.unlink()
            raise DamagedError(
                f"model {wanted.name}: {constants.ENDPOINT} sends more of {file.name} than its {file.size} "
                "bytes; thrown away: run it again, or take another HF_ENDPOINT"
            ) from None
        except (HfHubHTTPError, httpx.TransportError) as error:
            tried = 1 if part.stat().st_size > have else tried + 1
            if tried > _TRIES or not _may_pass(error):
                raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"the disk of {wanted.repo.parent} is full ({text(free(part.parent))} free); free some, "
                    "or set HF_HOME to a folder on another disk, and run it again: what was fetched is kept"
                ) from None
            raise
        if stop.wait(_PAUSE * 2 ** (tried - 1)):
            raise _StoppedError


def _may_pass(error: Exception) -> bool:
    """Whether it is worth trying again what http_get gave up at once."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined, unused-ignore]

    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code >= 500
    # These it has tried often enough.
    return not isinstance(error, (httpx.ConnectError, httpx.TimeoutException, httpx.RemoteProtocolError))


def _one(wanted: Wanted, file: File, stop: threading.Event, note: Note) -> None:
    """Fetch a file, compare it, and give it its name."""
    from huggingface_hub import hf_hub_download

    part, blob = wanted.part(file), wanted.blob(file)
    with locked(wanted.repo, file.digest, file.name, note):
        if blob.exists() and blob.stat().st_size != file.size:
            note(f"{file.name}: what was there of it was damaged; fetching it anew")
            blob.unlink()
            (wanted.snapshot / file.name).unlink(missing_ok=True)
        if not blob.exists():
            begun = part.exists() and part.stat().st_size > 0
            _append(wanted, file, stop)
            found = digest_of(part, file.digest, stop)
            if found != file.digest and begun:
                note(f"{file.name}: what was there of it was damaged; fetching it anew")
                part.unlink()
                _append(wanted, file, stop)
                found = digest_of(part, file.digest, stop)
            if found != file.digest:
                part.unlink()
                raise DamagedError(
                    f"model {wanted.name}: {file.name} came damaged (digest {found[:12]}, the hub says "
                    f"{file.digest[:12]}); run it again: what else was fetched is kept"
                )
            part.chmod(0o644)
            part.rename(blob)
    # Its bytes are there: this gives them their name, or a copy where there are no links.
    hf_hub_download(wanted.name, file.name, revision=wanted.commit)


def _words(done: int, wanted: Wanted, rate: float) -> str:
    share = 100 * done // max(wanted.size, 1)
    if rate <= 0:
        return f"{text(done)} of {text(wanted.size)}, {share} %"
    left = (wanted.size - done) / rate
    more = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    return f"{text(done)} of {text(wanted.size)}, {share} %, {text(int(rate))}/s, {more} left"


def fetch(wanted: Wanted, revision: str | None, note: Note, show: Show) -> None:
    """Fetch what is missing of a model; ``note`` gets a line on each file, ``show`` how far all is.

    Raises UserError when that is not possible. What was fetched stays, and the next call goes on there.
    """
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined, unused-ignore]

    disable_progress_bars()
    stop = threading.Event()
    todo: queue.SimpleQueue[File] = queue.SimpleQueue()
    missing = wanted.missing
    # Weights last: while one of them is missing the model is known not to be whole.
    for file in sorted(missing, key=lambda file: (is_weights(file.name), -file.size)):
        todo.put(file)
    failed: list[Exception] = []

    def work() -> None:
        with contextlib.suppress(queue.Empty, _StoppedError):
            while not stop.is_set():
                file = todo.get_nowait()
                try:
                    with told(wanted.name, revision):
                        _one(wanted, file, stop, note)
                except UserError as error:
                    failed.append(error)
                    stop.set()
                else:
                    note(f"{file.name}: {text(file.size)}, its digest is right")

    # Daemons: a read that waits for the network does not keep the process.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(_THREADS, len(missing)))]
    for thread in threads:
        thread.start()
    seen: deque[tuple[float, int]] = deque()
    try:
        while any(thread.is_alive() for thread in threads) and not failed:
            now, done = time.monotonic(), sum(wanted.present(file) for file in wanted.files)
            seen.append((now, done))
            while now - seen[0][0] > _WINDOW:
                seen.popleft()
            elapsed = now - seen[0][0]
            show(_words(done, wanted, (done - seen[0][1]) / elapsed if elapsed > 1 else 0.0))
            time.sleep(_POLL)
    finally:
        stop.set()
        for thread in threads:
            thread.join(1)
    if failed:
        raise failed[0]
    if (revision or "main") != wanted.commit:
        # Last: what was not fetched to its end is no branch's state.
        with replacing(wanted.repo / "refs" / (revision or "main")) as part:
            part.write_text(wanted.commit)
    _sweep(wanted)


def _sweep(wanted: Wanted) -> None:
    """Take away the parts that a killed huggingface_hub left, since it never goes on with them.

    With one of them a model never counts as whole (`gb10.checkpoint.hub`). Their names have one dot more
    than ours. Where the lock is held somebody fetches that file.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined, unused-ignore]

    locks = wanted.repo.parent / ".locks" / wanted.repo.name
    for part in (wanted.repo / "blobs").glob("*.*.incomplete"):
        with contextlib.suppress(TimeoutError, OSError):
            locks.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(locks / f"{part.name.partition('.')[0]}.lock", timeout=0.1):
                part.unlink(missing_ok=True)
