"""A hub on the loopback: a model's files by ranges, counted, with connections that break."""

import hashlib
import http.server
import json
import re
import socket
import struct
import threading
import time
from pathlib import Path

COMMIT = "a" * 40
_MOST = 64 << 20
_PIECE = 64 << 10


class Hub:
    """Serves ``folder`` as org/name at COMMIT, which main is.

    Attributes:
        asked: Path and range of each request for a file of weights.
        sent: Bytes of such files that went out.
        cut: After how many bytes each of the next answers breaks off; taken from the front.
        status: Answers all with this and ``code``, where it is not 0.
        ranges: Whether it gives parts of files.
        silent: Whether it breaks off all requests for files of weights.
        pause: Seconds before each 64 KiB of weights.
        failures: Statuses of the next answers for files of weights; taken from the front.
        resets: Whether a connection that breaks off is reset, as by a router, not closed.
        longer: Bytes that files of weights have too many when they are sent.
        sha: What it says that main is.
        content_range: What it says which part a part is, where that is not empty.
        etag: What it says that every file is, where that is not empty.
        short: After how many bytes each of the next answers for weights ends, as if that were all of it.
        lists: Statuses of the next answers for the list of files; taken from the front.
        headers: More headers of the answers in ``failures`` and ``lists``.
        damaged: Names of files whose bytes come wrong, each once for every time that it is in the list.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str]] = []
        self.sent = 0
        self.cut: list[int] = []
        self.status, self.code = 0, ""
        self.ranges = True
        self.silent = False
        self.damaged: list[str] = []
        self.pause = 0.0
        self.failures: list[int] = []
        self.resets = False
        self.longer = 0
        self.sha = COMMIT
        self.content_range, self.etag = "", ""
        self.short: list[int] = []
        self.headers: dict[str, str] = {}
        self.lists: list[int] = []
        self._lock = threading.Lock()
        hub = self

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """Clients that go away are no faults of the tests'."""

        self.server = Quiet(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        """End it."""
        self.server.shutdown()
        self.server.server_close()

    def answer(self, to: http.server.BaseHTTPRequestHandler) -> None:
        """One request."""
        path = to.path.partition("?")[0]
        if path == "/":
            self._send(to, 200, b"")
        elif self.status:
            self._send(to, self.status, b"{}", {"X-Error-Code": self.code})
        elif path.startswith("/api/models/org/name") and self.lists:
            self._send(to, self.lists.pop(0), b"{}", self.headers)
        elif re.fullmatch(rf"/api/models/org/name(/revision/(main|{COMMIT}))?", path):
            self._send(to, 200, json.dumps(self._info()).encode())
        elif path.startswith("/api/"):
            missing = "/revision/" in path
            self._send(to, 404, b"{}", {"X-Error-Code": "RevisionNotFound" if missing else "RepoNotFound"})
        else:
            found = re.fullmatch(rf"/org/name/resolve/(main|{COMMIT})/(.+)", path)
            file = self.folder / found[2] if found else None
            if file is None or not file.is_file():
                self._send(to, 404, b"", {"X-Error-Code": "EntryNotFound"})
            elif file.suffix == ".safetensors" and to.command == "GET":
                self._part(to, file)
            else:
                self._send(to, 200, self._bytes(file), {"ETag": f'"{self.etag or _digest(file)}"'})

    def _info(self) -> dict[str, object]:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {
            "_id": "0",
            "id": "org/name",
            "modelId": "org/name",
            "sha": self.sha,
            "siblings": [self._listed(path) for path in files],
        }

    def _listed(self, file: Path) -> dict[str, object]:
        size, digest = file.stat().st_size, _digest(file)
        listed: dict[str, object] = {"rfilename": str(file.relative_to(self.folder)), "size": size}
        if file.suffix == ".safetensors":
            return listed | {"blobId": "0", "lfs": {"sha256": digest, "size": size, "pointerSize": 134}}
        return listed | {"blobId": digest}

    def _bytes(self, file: Path, first: int = 0, count: int = -1) -> bytes:
        with file.open("rb") as opened:
            opened.seek(first)
            content = opened.read(count)
        with self._lock:
            if file.name not in self.damaged:
                return content
            self.damaged.remove(file.name)
        return content[:-1] + bytes([content[-1] ^ 1])

    def _part(self, to: http.server.BaseHTTPRequestHandler, file: Path) -> None:
        wanted = to.headers.get("Range", "")
        with self._lock:
            self.asked.append((file.name, wanted))
            cut = self.cut.pop(0) if self.cut else None
            failure = self.failures.pop(0) if self.failures else 0
            short = self.short.pop(0) if self.short else None
        if failure:
            self._send(to, failure, b"", self.headers)
            return
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        if self.silent:
            to.close_connection = True
            return
        whole = file.stat().st_size
        first, last = 0, whole - 1
        if found is None or not self.ranges:
            to.send_response(200)
        else:
            first, last = int(found[1]), int(found[2] or last)
            to.send_response(206)
            to.send_header("Content-Range", self.content_range or f"bytes {first}-{last}/{whole}")
        body = self._bytes(file, first, last + 1 - first)[:short] + bytes(self.longer)
        to.send_header("Content-Length", str(len(body)))
        to.end_headers()
        out = body if cut is None else body[:cut]
        for begin in range(0, len(out), _PIECE):
            time.sleep(self.pause)
            piece = out[begin : begin + _PIECE]
            try:
                to.wfile.write(piece)
            except OSError:
                break
            with self._lock:
                self.sent += len(piece)
        to.close_connection = cut is not None
        if cut is not None and self.resets:
            # What was sent has to arrive first: a reset throws away what was not read.
            time.sleep(0.2)
            to.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            to.connection.close()

    def _send(
        self,
        to: http.server.BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        more: dict[str, str] | None = None,
    ) -> None:
        to.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "X-Repo-Commit": COMMIT,
            **(more or {}),
        }.items():
            to.send_header(name, value)
        to.end_headers()
        if to.command == "GET":
            to.wfile.write(body)


def _digest(file: Path) -> str:
    """By what the hub knows a file: the SHA-256 of weights, Git's name of another.

    Of what is only a hole it is made up: nobody reads that to its end.
    """
    if file.stat().st_size > _MOST:
        return hashlib.sha256(file.name.encode()).hexdigest()
    content = file.read_bytes()
    if file.suffix == ".safetensors":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
