"""The headers of a model on Hugging Face's hub: a few megabytes of it, by ranges of its files.

All requests are huggingface_hub's (its session, retries, token, proxies, HF_ENDPOINT). Its own
``get_safetensors_metadata`` reads headers, too, but keeps nothing of a run that broke off, and does not say
how large the files are. What is fetched lies in ``XDG_CACHE_HOME/gb10/headers``, a folder for each commit,
as a checkpoint whose weights' files are holes of the right size behind their headers. So all that reads a
checkpoint's folder reads this one, and a later run fetches what is missing and nothing else.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gb10.checkpoint.folder import inspect
from gb10.checkpoint.formats import quiet
from gb10.checkpoint.headers import read_header
from gb10.checkpoint.hub import is_name
from gb10.download import transfer
from gb10.download.listing import File, listing
from gb10.download.store import digest_of_bytes
from gb10.download.told import hub, told
from gb10.errors import UserError
from gb10.files import replacing

_PREFIX = 8
"""Bytes of a safetensors file that say how long its header is, the lowest one first."""

_HEADER_LIMIT = 100 << 20
"""The safetensors format allows headers of at most 100 MB."""

_WEIGHTS = ".safetensors"
_SMALL = (
    "config.json",
    "hf_quant_config.json",
    "model.safetensors.index.json",
    "consolidated.safetensors.index.json",
)
_THREADS = 4
_SMALL_LIMIT = 256 << 20
"""Bytes of a file that is no file of weights; indexes of the largest models have 20 MB."""

Note = Callable[[str], None]
"""Takes a line on the progress."""


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where headers are kept. Raises UserError for a user without a home."""
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(cache).expanduser() / "gb10" / "headers"
    except RuntimeError:
        raise UserError("there is no home folder to keep headers in; set XDG_CACHE_HOME") from None


class _Bytes:
    """Bytes in memory, as `gb10.download.transfer` fills them. ``parts``: whether ranges are needed."""

    def __init__(self, label: str, most: int, *, parts: bool) -> None:
        self.bytes = bytearray()
        self._label, self._most, self._parts = label, most, parts

    @property
    def have(self) -> int:
        return len(self.bytes)

    def write(self, data: bytes) -> None:
        self.bytes += data
        if not self._parts and len(self.bytes) > self._most:
            raise UserError(
                f"model {self._label}: {hub()} sends more than the file has; take another HF_ENDPOINT"
            )

    def restart(self) -> None:
        if self._parts:
            raise UserError(
                f"model {self._label}: {hub()} gives whole files only, and its headers alone are "
                "wanted; take another HF_ENDPOINT, or fetch the model and give its folder"
            )
        self.bytes.clear()


def _range(name: str, commit: str, file: str, first: int, count: int, *, whole: bool = False) -> bytes:
    """``count`` bytes of a file from ``first``; a connection that breaks is taken up where it was."""
    got = _Bytes(name, count, parts=not whole)
    transfer.receive(transfer.Span(name, commit, file, first, count, whole), got, time.sleep)
    return bytes(got.bytes[:count])


def _small(name: str, commit: str, file: File) -> bytes:
    """A small file, as the hub lists it."""
    if file.size > _SMALL_LIMIT:
        raise UserError(f"model {name}: {file.name} has {file.size} bytes, which cannot be; not fetched")
    content = _range(name, commit, file.name, 0, file.size, whole=True)
    if digest_of_bytes(content, file.digest) != file.digest:
        raise UserError(f"model {name}: {file.name} came damaged; run it again")
    return content


def _begun(place: Path) -> Path:
    """Where files are written before they are whole."""
    return place.with_name(f"{place.name}.part")


def _is_there(path: Path, size: int) -> bool:
    """Whether a header was fetched, and is still one."""
    try:
        read_header(path)
    except UserError:
        return False
    return path.stat().st_size == size


def _fetch_header(name: str, commit: str, file: File, place: Path) -> int:
    """Write the header of a file, and a hole for its weights; how many bytes were asked for."""
    start = _range(name, commit, file.name, 0, _PREFIX)
    length = int.from_bytes(start, "little")
    if length > min(_HEADER_LIMIT, file.size - _PREFIX):
        raise UserError(f"model {name}: {file.name} is not a safetensors file; take another revision")
    text = _range(name, commit, file.name, _PREFIX, length)
    # Elsewhere first: a run that is killed leaves nothing in the folder that is read.
    begun = _begun(place) / file.name
    with replacing(begun) as part, part.open("wb") as out:
        out.write(start + text)
        out.truncate(file.size)
    try:
        read_header(begun)
    except UserError as error:
        begun.unlink()
        raise UserError(f"model {name}: {error}".replace(str(begun), file.name)) from None
    begun.replace(place / file.name)
    return _PREFIX + length


def fetch_headers(name: str, revision: str | None, folder: Path, note: Note = lambda _: None) -> Path:
    """The folder with the config and the headers of a hub model, fetched where they are not there yet.

    Args:
        name: The model, as org/name.
        revision: A branch, tag or commit; main by default.
        folder: `cache_folder`.
        note: Gets a line on each file that is fetched.

    Raises:
        UserError: The hub cannot be reached or does not give it, or it has no safetensors files. What was
            fetched until then stays, each file whole.
    """
    with quiet(), told(name, revision):
        commit, names = listing(name, revision, note)
        weights = [one for one in names.values() if one.name.endswith(_WEIGHTS) and "/" not in one.name]
        if "config.json" not in names:
            raise UserError(f"model {name} has no config.json; it is not a model that vLLM serves")
        if not weights:
            others = sorted(one for one in names if one.endswith((".bin", ".gguf", ".pt", ".pth")))
            more = f" (it has {others[0]})" if others else ""
            raise UserError(
                f"model {name} has no safetensors files{more}, and only their headers say what it holds; "
                "take a checkpoint in safetensors"
            )
        place = folder / name.replace("/", "--") / commit
        for small in _SMALL:
            if small in names and not (place / small).exists():
                content = _small(name, commit, names[small])
                with replacing(place / small) as part:
                    part.write_bytes(content)
        missing = [one for one in weights if not _is_there(place / one.name, one.size)]

        def fetch(one: File) -> None:
            size = _fetch_header(name, commit, one, place)
            note(f"{one.name}: {size} bytes of its header")

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(fetch, missing))
        shutil.rmtree(_begun(place), ignore_errors=True)
    return place


def fetched(name: str, revision: str | None, folder: Path) -> Path | None:
    """The folder that `fetch_headers` made earlier, whole as its index says; None without one.

    Of several the newest, or that of the commit ``revision``; what a branch was then is not kept.
    """
    if not is_name(name) or (revision is not None and not re.fullmatch("[0-9a-f]{40}", revision)):
        return None
    made = (folder / name.replace("/", "--")).glob(revision or "[0-9a-f]" * 40)
    for place in sorted(made, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            inspect(place, name, tokenizer=False)
        except UserError:
            continue
        return place
    return None


def default_folder() -> Path:
    """`cache_folder` of this process."""
    return cache_folder(os.environ)
