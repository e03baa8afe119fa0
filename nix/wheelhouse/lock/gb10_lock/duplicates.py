"""Finds files that more than one wheel installs, by reading only the wheels' central directories."""

import io
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser, Error
from dataclasses import dataclass
from urllib.error import URLError
from urllib.parse import unquote, urlsplit

from gb10_lock.errors import LockError
from gb10_lock.profiles import AllowedDuplicate, Profile
from gb10_lock.report import Found
from gb10_lock.sizes import TIMEOUT_S, size_of, tls

_BLOCK = 1 << 18
_SCHEMES = {"purelib": "site", "platlib": "site", "scripts": "bin", "data": "prefix", "headers": "include"}


class RemoteFile(io.RawIOBase):
    """A read-only file over HTTP range requests, fetched in blocks that are kept."""

    def __init__(self, address: str, size: int) -> None:
        self._address = address
        self._size = size
        self._at = 0
        self._blocks: dict[int, bytes] = {}

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves the position."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            first = number * _BLOCK
            last = min(first + _BLOCK, self._size) - 1
            request = urllib.request.Request(self._address, headers={"Range": f"bytes={first}-{last}"})
            with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=tls()) as answer:
                if answer.status != 206 and (first, last) != (0, self._size - 1):
                    raise LockError(
                        "the package index's server does not serve parts of files, which this needs"
                    )
                self._blocks[number] = answer.read()
        return self._blocks[number]

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fills `buffer` from the position, up to the end of a block."""
        if self._at >= self._size:
            return 0
        number, within = divmod(self._at, _BLOCK)
        data = self._block(number)[within : within + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@dataclass(frozen=True)
class Duplicate:
    """One installed path (under site/, bin/, include/ or prefix/) that several packages ship."""

    path: str
    packages: tuple[str, ...]
    same_content: bool


def installed_path(member: str) -> str:
    """Where pip installs a wheel's member: `x.data/scripts/y` becomes `bin/y`, the rest `site/...`."""
    parts = member.split("/")
    if len(parts) > 2 and parts[0].endswith(".data") and parts[1] in _SCHEMES:
        return "/".join([_SCHEMES[parts[1]], *parts[2:]])
    return "site/" + member


def contents(wheel: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    """Installed paths with a mark of their content; console scripts are marked by their entry point."""
    for info in wheel.infolist():
        if info.is_dir():
            continue
        yield installed_path(info.filename), f"{info.CRC:08x}:{info.file_size}"
        if info.filename.endswith(".dist-info/entry_points.txt") and info.filename.count("/") == 1:
            points = ConfigParser(delimiters=("=",), interpolation=None)
            points.optionxform = str  # type: ignore[assignment,method-assign]
            points.read_string(wheel.read(info).decode())
            for section in ("console_scripts", "gui_scripts"):
                if points.has_section(section):
                    for name, target in points.items(section):
                        yield f"bin/{name}", f"entry point {target.replace(' ', '')}"


def _open(found: Found) -> zipfile.ZipFile:
    parts = urlsplit(found.address)
    if parts.scheme == "file":
        return zipfile.ZipFile(unquote(parts.path))
    return zipfile.ZipFile(io.BufferedReader(RemoteFile(found.address, size_of(found))))


def _listing(found: Found) -> list[tuple[str, str]]:
    try:
        with _open(found) as wheel:
            return list(contents(wheel))
    except (OSError, URLError, zipfile.BadZipFile, Error, UnicodeDecodeError) as error:
        raise LockError(f"cannot list the files of {found.file}: {error}") from None


def collect(listings: Iterable[tuple[str, list[tuple[str, str]]]]) -> list[Duplicate]:
    """Paths that more than one package ships, out of (package, [(path, mark of content)])."""
    owners: dict[str, dict[str, str]] = {}
    for package, listing in listings:
        for path, mark in listing:
            owners.setdefault(path, {})[package] = mark
    return [
        Duplicate(path, tuple(sorted(marks)), len(set(marks.values())) == 1)
        for path, marks in sorted(owners.items())
        if len(marks) > 1
    ]


def find(wheels: list[Found]) -> list[Duplicate]:
    """Duplicate files between the wheels of one environment."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        listings = list(pool.map(_listing, wheels))
    return collect(zip((wheel.name for wheel in wheels), listings, strict=True))


def is_allowed(duplicate: Duplicate, profile: Profile, allowed: Iterable[AllowedDuplicate]) -> bool:
    """Whether profiles.toml lists this very path for all of these packages and the profile (or its base)."""
    names = {profile.name, profile.base}
    return any(
        item.path == duplicate.path
        and set(duplicate.packages) <= set(item.packages)
        and names & set(item.profiles)
        for item in allowed
    )
