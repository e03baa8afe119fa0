"""The log that this process writes, read by itself: for ``/v1/gb10/routing``."""

import threading
from pathlib import Path
from typing import Any

from gb10 import routing
from gb10.vllm_plugin.log import Reader

_STANDARD_OUTPUT = Path("/proc/self/fd/1")
"""`gb10 serve` gives vLLM's processes a file there; opened anew it is read from its beginning."""


class OwnLog:
    """Keeps what the log says of the server, so that each line is looked at once."""

    def __init__(self, path: Path = _STANDARD_OUTPUT) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._offset = 0
        self._reader = Reader()
        self._told = routing.Told()

    def report(self) -> dict[str, Any]:
        """What there is to say now (`gb10.routing.Report`); nothing where the log is no file."""
        with self._lock:
            if self._path.is_file():
                with self._path.open("rb") as file:
                    file.seek(self._offset)
                    data = file.read()
                whole = data[: data.rfind(b"\n") + 1]
                self._offset += len(whole)
                self._told += routing.told(whole.decode(errors="replace"), self._reader)
            return routing.report(self._told).as_json()
