"""Files of documents: JSON lines of {"package", "path", "text"}, packed as .xz or not."""

import hashlib
import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gb10.errors import UserError


@dataclass(frozen=True)
class Document:
    """One file of a package."""

    package: str
    path: str
    text: str

    @property
    def name(self) -> str:
        """Package and path."""
        return f"{self.package}/{self.path}"

    @property
    def size(self) -> int:
        """Bytes of the text in UTF-8."""
        return len(self.text.encode())

    def line(self) -> bytes:
        """The document as a line of JSON."""
        fields = {"package": self.package, "path": self.path, "text": self.text}
        return json.dumps(fields, ensure_ascii=False).encode() + b"\n"

    def key(self, seed: int) -> bytes:
        """The place in a random order: it depends on the seed and the name, not on other documents."""
        return hashlib.sha256(f"{seed}\0{self.package}\0{self.path}".encode()).digest()


def read_documents(path: Path) -> Iterator[Document]:
    """Read a file of documents, packed (`.xz`) or not. Raises UserError when it is not such a file."""
    try:
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                yield _document(path, number, line)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"cannot read documents from {path}: {error}") from error


def by_hash(documents: Iterator[Document], seed: int) -> list[tuple[bytes, Document]]:
    """Order documents by a SHA-256 of the seed and their name, which is given too.

    A document's place depends on no other document, so a change of one moves no other.
    """
    hashed = [(hashlib.sha256(f"{seed}:{one.name}".encode()).digest(), one) for one in documents]
    return sorted(hashed, key=lambda entry: (entry[0], entry[1].text))


def _document(path: Path, number: int, line: bytes) -> Document:
    try:
        fields = json.loads(line)
        document = Document(fields["package"], fields["path"], fields["text"])
        if not all(isinstance(part, str) for part in (document.package, document.path, document.text)):
            raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}, line {number} is no document with package, path and text") from error
    return document
