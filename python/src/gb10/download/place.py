"""Where a model's files lie in the hub's cache, as huggingface_hub lays it out."""

import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from gb10.download.listing import File
from gb10.files import nearest


@dataclass(frozen=True)
class Place:
    """The folder of a model at a commit. ``repo``: its folder in the cache."""

    name: str
    commit: str
    repo: Path

    @property
    def snapshot(self) -> Path:
        """The folder that has the model's files by their names."""
        return self.repo / "snapshots" / self.commit

    def blob(self, file: File) -> Path:
        """Where a file's bytes are when they are all there."""
        return self.repo / "blobs" / file.digest

    def part(self, file: File) -> Path:
        """Where they are until then.

        Not ``.incomplete``, as huggingface_hub names its own: with one of those a model never counts as whole
        (`gb10.checkpoint.hub`), and this may be of another commit. What is fetched here lacks weights until
        it is whole.
        """
        return self.repo / "blobs" / f"{file.digest}.part"

    def present(self, file: File) -> int:
        """How many of a file's bytes are there."""
        if any(has(path, file.size) for path in (self.snapshot / file.name, self.blob(file))):
            return file.size
        return min(max(_bytes(self.part(file)), 0), file.size)


def of(name: str, commit: str) -> Place:
    """A model's place in the cache that huggingface_hub uses."""
    from huggingface_hub import constants

    return Place(name, commit, Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}")


def _bytes(path: Path) -> int:
    """The size of a file, -1 where none is: another thread or process may take it away at any time."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def has(path: Path, size: int) -> bool:
    """Whether a file is there, with this many bytes."""
    return _bytes(path) == size


def text(size: int) -> str:
    """Bytes as a hub and a disk count them: ``47.2 GB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def free(folder: Path) -> int:
    """Bytes that are free where a folder is, or would be made."""
    return shutil.disk_usage(nearest(folder)).free
