"""The archive that an image is written as."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "top"
    (top / "tmp").mkdir(parents=True)
    (top / "tmp").chmod(0o1777)
    (top / "bin").mkdir()
    for name in ("b", "a", "a.b"):
        (top / "bin" / name).write_text(name)
    (top / "bin/a").chmod(0o755)
    (top / "bin/sh").symlink_to("/nix/store/" + "x" * 150)
    (top / "bin/hard").hardlink_to(top / "bin/b")
    return top


def configuration(layers: list[list[str]], root: Path) -> dict[str, Any]:
    """What layers.py writes."""
    return {
        "created": "1970-01-01T00:00:01Z",
        "architecture": "arm64",
        "config": {},
        "repo_tag": "name:tag",
        "store_layers": layers,
        "root": str(root),
    }


def layer(stream: ModuleType, folder: Path) -> bytes:
    out = io.BytesIO()
    stream.write_layer(out, stream.of_root(folder), 1.0)
    return out.getvalue()


def test_the_same_bytes_each_time_whatever_the_files_times_and_owner(
    stream: ModuleType, folder: Path
) -> None:
    first = layer(stream, folder)
    os.utime(folder / "bin/a", (5e8, 5e8))
    os.utime(folder / "bin", (5e8, 5e8))
    assert layer(stream, folder) == first


def test_a_file_that_lends_rights_lends_none_in_the_image(
    stream: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "bin/a"
    found = file.lstat()
    lending = os.stat_result((found.st_mode | stat.S_ISUID | stat.S_ISGID, *found[1:]))
    # Nix's sandbox lets nobody make such a file.
    monkeypatch.setattr(Path, "lstat", lambda _path: lending)
    assert stream.member(file, "a", 1.0).mode == 0o755


def test_entries_are_sorted(stream: ModuleType, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(layer(stream, folder))) as archive:
        members = archive.getmembers()
        assert [m.name for m in members] == [
            "bin",
            *(f"bin/{n}" for n in ("a", "a.b", "b", "hard", "sh")),
            "tmp",
        ]
        assert all((m.uid, m.gid, m.uname, m.mtime) == (0, 0, "root", 1) for m in members)
        by_name = {m.name: m for m in members}
        assert by_name["tmp"].mode == 0o1777
        assert by_name["bin/sh"].linkname == "/nix/store/" + "x" * 150
        held = archive.extractfile("bin/hard")
        assert held is not None and held.read() == b"b"


def test_folders_on_the_way_to_the_store_are_not_this_machines(
    stream: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Path("/").lstat()
    closed = os.stat_result((stat.S_IFDIR | 0o700, *found[1:]))
    monkeypatch.setattr(Path, "lstat", lambda _path: closed)
    out = io.BytesIO()
    stream.write_layer(out, stream.of_store([]), 1.0)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        assert [(m.name, m.mode) for m in archive.getmembers()] == [("nix", 0o755), ("nix/store", 0o755)]


def test_a_socket_is_no_content(stream: ModuleType, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(ValueError, match="no file, folder or link"):
        layer(stream, folder)


def test_an_image_is_what_its_manifest_says(stream: ModuleType, folder: Path, tmp_path: Path) -> None:
    paths = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(os.urandom(3 << 20))
        paths.append([str(tmp_path / name)])
    root = tmp_path / "root.tar"
    root.write_bytes(layer(stream, folder))
    conf = configuration(paths, root) | {"config": {"User": "10001:10001"}}
    out = io.BytesIO()
    stream.write_image(conf, "name:tag", out)
    again = io.BytesIO()
    stream.write_image(conf, "name:tag", again)
    assert out.getvalue() == again.getvalue()
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:

        def read(name: str) -> bytes:
            file = archive.extractfile(name)
            assert file is not None
            return file.read()

        (manifest,) = json.loads(read("manifest.json"))
        assert manifest["RepoTags"] == ["name:tag"]
        image = json.loads(read(manifest["Config"]))
        assert (image["architecture"], image["os"]) == ("arm64", "linux")
        assert image["config"] == conf["config"]
        assert len(manifest["Layers"]) == len(image["history"]) == 3
        for name, diff in zip(manifest["Layers"], image["rootfs"]["diff_ids"], strict=True):
            assert diff == f"sha256:{hashlib.sha256(read(name)).hexdigest()}"
        with tarfile.open(fileobj=io.BytesIO(read(manifest["Layers"][0]))) as first:
            held = first.extractfile(f"{paths[0][0][1:]}/file")
            assert held is not None and held.read() == Path(paths[0][0], "file").read_bytes()


@pytest.mark.parametrize("to", ["a reader that ends", "/dev/full"])
def test_an_image_that_cannot_be_written_is_one_line(to: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(os.urandom(3 << 20))
    (tmp_path / "root.tar").write_bytes(b"")
    conf = configuration([[str(tmp_path / "one")]], tmp_path / "root.tar")
    (tmp_path / "conf.json").write_text(json.dumps(conf))
    command = [
        sys.executable,
        "-I",
        str(ROOT / "nix/debian/docker/stream.py"),
        "image",
        str(tmp_path / "conf.json"),
    ]
    if to == "/dev/full":
        with Path(to).open("wb") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        status, said = done.returncode, done.stderr
    else:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        status = process.wait(30)
        process.stderr.close()
    assert status == 2
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("stream: error: the image could not be written (")
