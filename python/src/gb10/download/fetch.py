"""Fetch the files of a model: several at once, weights when all else is there."""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from gb10.download import store
from gb10.download.listing import File
from gb10.download.place import text
from gb10.download.plan import Wanted, is_weights
from gb10.download.told import told
from gb10.download.transfer import Note
from gb10.errors import UserError
from gb10.files import replacing

_THREADS = 4
_POLL = 0.1
_WINDOW = 10.0
"""Seconds over which the rate is taken."""

Show = Callable[[str], None]
"""Takes how far it is; called often."""


def _words(done: int, wanted: Wanted, rate: float) -> str:
    share = 100 * done // max(wanted.size, 1)
    if rate <= 0:
        return f"{text(done)} of {text(wanted.size)}, {share} %"
    left = (wanted.size - done) / rate
    more = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    return f"{text(done)} of {text(wanted.size)}, {share} %, {text(int(rate))}/s, {more} left"


def _at_once(
    wanted: Wanted, files: Sequence[File], revision: str | None, note: Note, show: Callable[[], None]
) -> None:
    """Fetch files, several at once; the end of one that fails is the end of all."""
    stop = threading.Event()
    todo: queue.SimpleQueue[File] = queue.SimpleQueue()
    for file in files:
        todo.put(file)
    failed: list[Exception] = []

    def work() -> None:
        with contextlib.suppress(queue.Empty, store.StoppedError):
            while not stop.is_set():
                file = todo.get_nowait()
                try:
                    with told(wanted.name, revision, file.name):
                        store.store(wanted, file, stop, note)
                except store.StoppedError:
                    raise
                except Exception as error:  # raised again by the thread that waits
                    failed.append(error)
                    stop.set()
                else:
                    note(f"{file.name}: {text(file.size)}, its digest is right")

    # Daemons: a read that waits for the network does not keep the process.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(_THREADS, len(files)))]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads) and not failed:
            show()
            time.sleep(_POLL)
    finally:
        stop.set()
        for thread in threads:
            thread.join(1)
    if failed:
        raise failed[0]


def fetch(wanted: Wanted, revision: str | None, note: Note, show: Show) -> None:
    """Fetch what is missing of a model; ``note`` gets a line on each file, ``show`` how far all is.

    Raises UserError when that is not possible. What was fetched stays, and the next call goes on there.
    """
    seen: deque[tuple[float, int]] = deque()

    def far() -> None:
        now, done = time.monotonic(), sum(wanted.present(file) for file in wanted.files)
        seen.append((now, done))
        while now - seen[0][0] > _WINDOW:
            seen.popleft()
        elapsed = now - seen[0][0]
        show(_words(done, wanted, (done - seen[0][1]) / elapsed if elapsed > 1 else 0.0))

    # Weights when all else has its name: while one of them is missing the model is known not to be whole.
    largest_first = sorted(wanted.missing, key=lambda file: -file.size)
    for of_weights in (False, True):
        files = [file for file in largest_first if is_weights(file.name) == of_weights]
        _at_once(wanted, files, revision, note, far)
    if lacking := wanted.missing:
        raise UserError(
            f"model {wanted.name}: {lacking[0].name} was fetched and is not in {wanted.snapshot}; "
            "does another program clear that cache?"
        )
    ref = wanted.repo / "refs" / (revision or "main")
    if ref.name != wanted.commit and not (ref.is_file() and ref.read_text() == wanted.commit):
        # Last: what was not fetched to its end is no branch's state.
        with replacing(ref) as part:
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
