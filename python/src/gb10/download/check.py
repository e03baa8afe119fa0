"""Compare what the cache has of a model with what the hub has, or with what its own files name."""

import contextlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gb10.checkpoint.folder import inspect
from gb10.checkpoint.headers import Incomplete
from gb10.checkpoint.hub import interrupted
from gb10.download import plan, store
from gb10.download.fetch import Show
from gb10.download.listing import DIGEST
from gb10.download.place import text
from gb10.download.told import told
from gb10.download.transfer import Note
from gb10.errors import UserError


@dataclass
class Found:
    """What is wrong with a cached model; which files those are, `compare` has said."""

    bad: int = 0
    """Files that are missing, damaged, or not to be read."""
    kept_because: str = ""
    """Why damaged ones are still there."""
    unread: bool = False
    """Whether some could not be read: nothing is known of them."""


@dataclass(frozen=True)
class _Entry:
    """A file of a snapshot. ``digest``: what its bytes should have."""

    name: str
    path: Path
    digest: str


def from_hub(model: str, snapshot: Path) -> plan.Wanted:
    """What the hub has at the commit of a snapshot. Raises UserError where it does not say."""
    with told(model, snapshot.name):
        return plan.ask(model, snapshot.name, local=True)


def _digests(snapshot: Path, names: set[str], wanted: plan.Wanted | None) -> Iterator[_Entry]:
    """What each file that is there should have: as the hub says, else as the cache names its bytes."""
    listed = {} if wanted is None else {file.name: file.digest for file in wanted.files + wanted.left_out}
    for name in sorted(names):
        path = snapshot / name
        digest = listed.get(name) or path.resolve().name
        if not re.fullmatch(DIGEST, digest):
            raise UserError(
                f"{path} does not lead to a file named by its digest, and the hub says none: it cannot be "
                "compared"
            )
        yield _Entry(name, path, digest)


def _lacking(
    model: str, snapshot: Path, there: set[str], links: set[str], wanted: plan.Wanted | None
) -> list[str]:
    """A line on each that should be there: ``links`` that lead nowhere, the hub's files that vLLM reads, else
    what the own files name.
    """
    if wanted is not None:
        links = links | {file.name for file in wanted.files} - there
    elif plan.INDEX in there:
        # A damaged one: its digest says so.
        with contextlib.suppress(UserError):
            links = links | plan.indexed(model, snapshot / plan.INDEX) - there
    lines = [f"{name} is missing" for name in sorted(links)]
    if wanted is None and not lines:
        # Damaged weights, which their digests tell, do not hide that the tokenizer is not there.
        for weights in (True, False):
            try:
                inspect(snapshot, model, weights=weights)
            except Incomplete as error:
                lines = [str(error)]
            except UserError:
                continue
        if not lines and interrupted(snapshot.parents[1]):
            lines = ["a download of it was interrupted, and what it was fetching is not there"]
    return lines


@contextmanager
def _ours(repo: Path, digest: str, note: Note) -> Iterator[None]:
    """The lock of a file, where the cache can be written at all."""
    with contextlib.ExitStack() as stack:
        # Who cannot write there fetches nothing there, and neither does this process.
        with contextlib.suppress(OSError):
            stack.enter_context(store.locked(repo, digest, digest[:12], note))
        yield


def _take_out(entry: _Entry, repo: Path, note: Note) -> bool:
    """Take a damaged file out of the cache; False where somebody mended it meanwhile. Raises OSError."""
    with _ours(repo, entry.digest, note):
        blob = entry.path.resolve()
        if store.digest_of(blob, entry.digest) == entry.digest:
            return False
        # The name first: without it the file is missing, whatever else fails.
        entry.path.unlink()
        if blob == (repo / "blobs" / entry.digest).resolve():
            blob.unlink(missing_ok=True)
    return True


def compare(model: str, snapshot: Path, wanted: plan.Wanted | None, note: Note, show: Show) -> Found:
    """Compare all files of a snapshot with their digests, and look for those that are not there.

    Damaged ones are taken out of the cache, under the lock that `fetch` takes, so that the next download
    fetches them. ``note`` gets a line on each file that is not right, at once.

    Args:
        model: Its name.
        snapshot: Its folder in the cache.
        wanted: What the hub has of it; None where that cannot be asked.
        note: Takes a line.
        show: Takes how far it is.

    Raises:
        UserError: A file leads to no digest, and the hub says none.
    """
    found = Found()
    repo = snapshot.parents[1]
    paths = {str(path.relative_to(snapshot)): path for path in snapshot.rglob("*")}
    there = {name for name, path in paths.items() if path.is_file()}
    links = {name for name, path in paths.items() if path.is_symlink()} - there
    entries = list(_digests(snapshot, there, wanted))
    for line in _lacking(model, snapshot, there, links, wanted):
        found.bad += 1
        note(line)
    whole = sum(entry.path.stat().st_size for entry in entries)
    read = 0

    def seen(count: int) -> None:
        nonlocal read
        read += count
        show(f"{text(read)} of {text(whole)} compared, {100 * read // max(whole, 1)} %")

    for entry in entries:
        _one(entry, repo, found, note, seen)
    return found


def _one(entry: _Entry, repo: Path, found: Found, note: Note, seen: Callable[[int], None]) -> None:
    try:
        right = store.digest_of(entry.path, entry.digest, seen=seen) == entry.digest
    except OSError as error:
        found.bad, found.unread = found.bad + 1, True
        note(f"{entry.name} cannot be read: {(error.strerror or str(error)).lower()}")
        return
    try:
        if right or not _take_out(entry, repo, note):
            return
        note(f"{entry.name} is damaged, and was taken out of the cache")
    except OSError as error:
        found.kept_because = (error.strerror or str(error)).lower()
        note(f"{entry.name} is damaged, and cannot be taken out of the cache: {found.kept_because}")
    found.bad += 1
