"""What an image's archive holds, read once as a stream: its files, its layers and its name, which is a hash.

usage: python -m gb10_bom.archive OUT <ARCHIVE
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from gb10_bom.errors import BomError


@dataclass(frozen=True)
class Content:
    """An image as its archive has it.

    Attributes:
        archive: SHA-256 of the archive, in hex
        config: SHA-256 of the image's configuration, in hex: podman's image id
        created: the time in the configuration
        layers: SHA-256 of each layer, in hex, the lowest first
        files: files and links of all layers, absolute and sorted; no folders
    """

    archive: str
    config: str
    created: str
    layers: list[str]
    files: list[str]

    def to_json(self) -> str:
        """As ``from_json`` reads it."""
        return json.dumps(asdict(self), indent=0, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Content:
        """What ``to_json`` wrote."""
        return Content(**json.loads(text))


class _Hashed(io.RawIOBase):
    """A stream that hashes what is read of it."""

    def __init__(self, source: IO[bytes]) -> None:
        self.source = source
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some of it."""
        data = self.source.read(len(buffer))
        self.digest.update(data)
        buffer[: len(data)] = data
        return len(data)

    def finish(self) -> str:
        """The hash of all of it, in hex."""
        while self.read(1 << 20):
            pass
        return self.digest.hexdigest()


def _layer(source: IO[bytes]) -> tuple[str, list[str]]:
    """A layer's hash and its files."""
    hashed = _Hashed(source)
    with tarfile.open(fileobj=io.BufferedReader(hashed, 1 << 20), mode="r|") as layer:
        files = [f"/{entry.name.removeprefix('./').lstrip('/')}" for entry in layer if not entry.isdir()]
    return hashed.finish(), files


def read(stream: IO[bytes]) -> Content:
    """Read an archive as ``podman load`` takes it.

    Raises:
        BomError: it is none, or a part of it has not the hash by which another part knows it.
    """
    outer = _Hashed(stream)
    layers: dict[str, tuple[str, list[str]]] = {}
    texts: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BufferedReader(outer, 1 << 20), mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isreg() else None
                if content is None:
                    continue
                if member.name.endswith("/layer.tar"):
                    layers[member.name] = _layer(content)
                else:
                    texts[member.name] = content.read()
        [manifest] = json.loads(texts["manifest.json"])
        config = hashlib.sha256(texts[manifest["Config"]]).hexdigest()
        image = json.loads(texts[manifest["Config"]])
        read_layers = [layers[name] for name in manifest["Layers"]]
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise BomError(f"this is no archive of an image ({error})") from None
    said = [digest.removeprefix("sha256:") for digest in image["rootfs"]["diff_ids"]]
    if said != [digest for digest, _ in read_layers]:
        raise BomError("the archive's layers have not the hashes that its configuration names")
    files = sorted({file for _, names in read_layers for file in names})
    return Content(outer.finish(), config, image["created"], said, files)


def load(path: Path) -> Content:
    """What ``read`` found, from the file that it was written to."""
    return Content.from_json(path.read_text(encoding="utf-8"))


def main() -> int:
    """Write what ``load`` reads."""
    try:
        Path(sys.argv[1]).write_text(read(sys.stdin.buffer).to_json(), encoding="utf-8")
    except BomError as error:
        print(f"sbom: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
