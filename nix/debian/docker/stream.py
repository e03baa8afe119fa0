"""Writes an image to stdout, as an archive that ``podman load`` reads.

usage: stream.py image CONF.json [--repo_tag NAME:TAG]
       stream.py root FOLDER TIME   (the layer of its root folder)

Every run writes the same bytes: entries are sorted, the time is the configuration's and the owner root. A
layer is read twice, once for its name, which is its hash, and once to be written; nothing is kept on disk.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import stat
import sys
import tarfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any


class Measure(io.RawIOBase):
    """A file that keeps of what is written its hash and its size."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        """Take it."""
        self.digest.update(data)
        self.size += len(data)
        return len(data)


def entries(top: Path) -> Iterator[Path]:
    """A path and what is below it, sorted by name, folders before what they hold."""
    yield top
    if top.is_dir() and not top.is_symlink():
        for child in sorted(top.iterdir(), key=lambda path: path.name):
            yield from entries(child)


def member(path: Path, name: str, mtime: float) -> tarfile.TarInfo:
    """A file's entry: root's, of that time, without a bit that lends rights."""
    found = path.lstat()
    info = tarfile.TarInfo(name)
    info.mtime = mtime
    info.uname = info.gname = "root"
    if path == Path("/"):
        # A folder on the way to the store: not as this machine's root folder is.
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        return info
    info.mode = stat.S_IMODE(found.st_mode) & 0o1777
    if stat.S_ISLNK(found.st_mode):
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
    elif stat.S_ISDIR(found.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISREG(found.st_mode):
        info.size = found.st_size
    else:
        raise ValueError(f"{path} is no file, folder or link")
    return info


def write_layer(sink: IO[bytes], files: Iterator[tuple[Path, str]], mtime: float) -> None:
    """Write a layer: files, and their names in it."""
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as archive:
        for file, name in files:
            info = member(file, name, mtime)
            if info.isreg():
                with file.open("rb") as content:
                    archive.addfile(info, content)
            else:
                archive.addfile(info)


def of_store(paths: list[str]) -> Iterator[tuple[Path, str]]:
    """The files of store paths, below the folders that lead there."""
    for folder in ("/nix", "/nix/store"):
        yield Path("/"), folder[1:]
    for path in paths:
        for file in entries(Path(path)):
            yield file, str(file)[1:]


def of_root(root: Path) -> Iterator[tuple[Path, str]]:
    """The files below a folder that is the root of the image."""
    for file in entries(root):
        if file != root:
            yield file, str(file.relative_to(root))


class Rewriter(io.RawIOBase):
    """A layer as a file that tarfile reads: written by a process of its own into a pipe."""

    def __init__(self, paths: list[str], mtime: float) -> None:
        reading, writing = os.pipe()
        self.child = os.fork()
        if self.child == 0:
            status = 1
            try:
                os.close(reading)
                with os.fdopen(writing, "wb") as pipe:
                    write_layer(pipe, of_store(paths), mtime)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        self.pipe = os.fdopen(reading, "rb")

    def read(self, size: int = -1) -> bytes:
        """Some of it."""
        return self.pipe.read(size)

    def close(self) -> None:
        """End, and complain where the writer did."""
        if self.closed:
            return
        self.pipe.close()
        super().close()
        if os.waitpid(self.child, 0)[1] != 0:
            raise OSError("a layer could not be read twice")


def time_of(text: str) -> float:
    """Seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


def write_image(conf: dict[str, Any], name: str, out: IO[bytes]) -> None:
    """Write the archive."""
    mtime = time_of(conf["created"])
    digests: list[str] = []
    with tarfile.open(fileobj=out, mode="w|", bufsize=1 << 20) as archive:

        def add(name: str, size: int, content: IO[bytes]) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = size, mtime
            archive.addfile(info, content)

        def add_json(content: Any, name: str = "") -> str:
            data = json.dumps(content, indent=1, sort_keys=True).encode()
            name = name or f"{hashlib.sha256(data).hexdigest()}.json"
            add(name, len(data), io.BytesIO(data))
            return name

        layers = conf["store_layers"]
        for number, paths in enumerate(layers, 1):
            found = Measure()
            write_layer(found, of_store(paths), mtime)  # type: ignore[arg-type]
            said = f"layer {number} of {len(layers) + 1}: {found.size / 1e6:.1f} MB, {len(paths)} store paths"
            print(said, file=sys.stderr)
            digests.append(found.digest.hexdigest())
            with Rewriter(paths, mtime) as layer:
                add(f"{digests[-1]}/layer.tar", found.size, layer)  # type: ignore[arg-type]
        root = Path(conf["root"]).read_bytes()
        digests.append(hashlib.sha256(root).hexdigest())
        add(f"{digests[-1]}/layer.tar", len(root), io.BytesIO(root))
        comments = [*(" ".join(paths) for paths in layers), "the root folder"]
        image = {
            "created": conf["created"],
            "architecture": conf["architecture"],
            "os": "linux",
            "config": conf["config"],
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
            "history": [{"created": conf["created"], "comment": comment} for comment in comments],
        }
        manifest = {
            "Config": add_json(image),
            "RepoTags": [name],
            "Layers": [f"{digest}/layer.tar" for digest in digests],
        }
        add_json([manifest], "manifest.json")


def main(arguments: list[str]) -> int:
    """Write an image, or the layer that is its root folder."""
    match arguments:
        case ["root", folder, mtime]:
            write_layer(sys.stdout.buffer, of_root(Path(folder)), time_of(mtime))
            return 0
        case ["image", file, *rest]:
            parser = argparse.ArgumentParser(
                prog="stream", description="an image for `podman load`, to stdout"
            )
            parser.add_argument("--repo_tag", "-t", metavar="NAME:TAG", help="instead of the built one")
            asked = parser.parse_args(rest)
            if sys.stdout.isatty():
                parser.error("stdout is a terminal; pipe it into `podman load`, or into a file")
            conf = json.loads(Path(file).read_text())
            try:
                write_image(conf, asked.repo_tag or conf["repo_tag"], sys.stdout.buffer)
                sys.stdout.flush()
            except OSError as error:
                # A reader that ended, or a full disk. What is left in the buffer goes nowhere.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                print(
                    f"stream: error: the image could not be written ({error.strerror or error})",
                    file=sys.stderr,
                )
                return 2
            return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
