"""Files that several wheels install, read out of real zip files, in a folder and over HTTP ranges."""

import os
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from gb10_lock import duplicates
from gb10_lock.duplicates import Duplicate
from gb10_lock.errors import LockError
from gb10_lock.profiles import AllowedDuplicate, parse
from gb10_lock.report import Found
from lock_fakes import PROFILES


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Found:
    path = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in files.items():
            archive.writestr(member, data)
    return Found(name, "1", path.name, "0" * 64, path.as_uri())


@pytest.fixture
def two(tmp_path: Path) -> list[Found]:
    one = wheel(
        tmp_path,
        "one",
        {
            "space/__init__.py": b"",
            "space/one.py": b"1",
            "differs.txt": b"one",
            "one-1.data/scripts/run": b"#!python",
            "one-1.dist-info/RECORD": b"one",
            "folder/": b"",
            "noise.bin": os.urandom(600_000),
        },
    )
    entry_points = b"[console_scripts]\nrun = space.two:main\nTool = x:y\n[other]\nrun = a:b\n"
    other = wheel(
        tmp_path,
        "two",
        {
            "space/__init__.py": b"",
            "two-1.data/purelib/differs.txt": b"two",
            "two-1.dist-info/entry_points.txt": entry_points,
            "two-1.dist-info/RECORD": b"two",
            "folder/": b"",
        },
    )
    return [one, other]


EXPECTED = [
    Duplicate("bin/run", ("one", "two"), False),
    Duplicate("site/differs.txt", ("one", "two"), False),
    Duplicate("site/space/__init__.py", ("one", "two"), True),
]


def test_duplicates_of_files_scripts_and_entry_points(two: list[Found]) -> None:
    assert duplicates.find(two) == EXPECTED
    assert duplicates.find(two[:1]) == []


class Handler(BaseHTTPRequestHandler):
    folder: Path
    ranges: bool
    sent: int

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str((self.folder / self.path[1:]).stat().st_size))
        self.end_headers()

    def do_GET(self) -> None:
        data = (self.folder / self.path[1:]).read_bytes()
        status = 200
        if self.ranges:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            data, status = data[int(first) : int(last) + 1], 206
        type(self).sent += len(data)
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, type[Handler]]]:
    handler = type("Served", (Handler,), {"folder": tmp_path, "ranges": True, "sent": 0})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", handler
        http.shutdown()


def test_only_parts_are_fetched_over_http(two: list[Found], server: tuple[str, type[Handler]]) -> None:
    address, handler = server
    remote = [Found(item.name, "1", item.file, item.sha256, f"{address}/{item.file}") for item in two]
    assert duplicates.find(remote) == EXPECTED
    assert 0 < handler.sent < 600_000


def test_a_server_without_ranges_is_named(two: list[Found], server: tuple[str, type[Handler]]) -> None:
    address, handler = server
    handler.ranges = False
    remote = Found("one", "1", two[0].file, "0" * 64, f"{address}/{two[0].file}")
    with pytest.raises(LockError, match="does not serve parts of files"):
        duplicates.find([remote])


def test_a_broken_wheel_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad-1-py3-none-any.whl"
    path.write_bytes(b"not a zip file")
    with pytest.raises(LockError, match=r"cannot list the files of bad-1-py3-none-any\.whl"):
        duplicates.find([Found("bad", "1", path.name, "0" * 64, path.as_uri())])


@pytest.mark.parametrize(
    ("profiles", "path", "packages", "allowed"),
    [
        (("cpu",), "site/a", ("x", "y"), True),
        (("cpu",), "site/a", ("x", "y", "z"), True),
        (("cpu",), "site/a", ("x",), False),
        (("cpu",), "site/b", ("x", "y"), False),
        (("test",), "site/a", ("x", "y"), False),
    ],
)
def test_a_duplicate_is_allowed_by_path_packages_and_profile(
    profiles: tuple[str, ...], path: str, packages: tuple[str, ...], allowed: bool
) -> None:
    inputs = parse(PROFILES)
    duplicate = Duplicate("site/a", ("x", "y"), True)
    listed = [AllowedDuplicate(profiles, path, packages)]
    assert duplicates.is_allowed(duplicate, inputs.profiles["cpu"], listed) is allowed
    on_top = allowed or "test" in profiles
    assert duplicates.is_allowed(duplicate, inputs.profiles["test"], listed) is on_top
