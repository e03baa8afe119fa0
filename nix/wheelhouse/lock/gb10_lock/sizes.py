"""Sizes of wheels in bytes, without downloading them."""

import os
import ssl
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError
from urllib.parse import unquote, urlsplit

from gb10_lock.errors import LockError
from gb10_lock.report import Found

TIMEOUT_S = 60


def tls() -> ssl.SSLContext:
    """Certificates as pip is told to use them, else the machine's own."""
    return ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE"))


def size_of(found: Found) -> int:
    """The size of one wheel: of the file if the index is a folder, else as the server states it."""
    parts = urlsplit(found.address)
    try:
        if parts.scheme == "file":
            return Path(unquote(parts.path)).stat().st_size
        request = urllib.request.Request(found.address, method="HEAD")
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=tls()) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, URLError, TypeError, ValueError) as error:
        raise LockError(f"cannot learn the size of {found.file}: {error}") from None


def sizes(wanted: list[Found], known: dict[str, int]) -> dict[str, int]:
    """SHA-256 to size. A hash whose size is known is not asked for again: its size cannot change."""
    missing = {item.sha256: item for item in wanted if item.sha256 not in known}
    with ThreadPoolExecutor(max_workers=8) as pool:
        asked = dict(zip(missing, pool.map(size_of, missing.values()), strict=True))
    return known | asked
