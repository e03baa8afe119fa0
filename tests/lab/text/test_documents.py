"""Files of documents."""

import lzma
from pathlib import Path

import pytest

from gb10.errors import UserError
from gb10_lab.text.documents import Document, by_hash, read_documents

DOCUMENTS = [Document("a", "x.py", "text = 'caf\u00e9 \u2028'\n"), Document("b", "y/z.rst", "Words.\n")]


@pytest.mark.parametrize("name", ["text.jsonl", "text.jsonl.xz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    content = b"".join(document.line() for document in DOCUMENTS)
    path = tmp_path / name
    path.write_bytes(lzma.compress(content) if name.endswith(".xz") else content)
    assert list(read_documents(path)) == DOCUMENTS


@pytest.mark.parametrize(
    "line",
    [b"{", b'{"package": "a", "path": "b"}', b'{"package": 1, "path": "b", "text": "c"}', b"[]", b"\xff\xfe"],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "text.jsonl"
    path.write_bytes(DOCUMENTS[0].line() + line + b"\n")
    with pytest.raises(UserError, match=r"text\.jsonl, line 2 is no document"):
        list(read_documents(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    packed = tmp_path / "text.jsonl.xz"
    packed.write_bytes(b"not packed")
    cut = tmp_path / "cut.jsonl.xz"
    cut.write_bytes(lzma.compress(DOCUMENTS[0].line())[:-8])
    for path in (packed, cut, tmp_path / "missing.jsonl"):
        with pytest.raises(UserError, match="cannot read documents from"):
            list(read_documents(path))


def test_the_order_of_one_does_not_depend_on_others() -> None:
    many = [Document("p", str(number), "") for number in range(50)]
    order = [document.path for _, document in by_hash(iter(many), 3)]
    fewer = [document.path for _, document in by_hash(iter(many[::2]), 3)]
    assert fewer == [path for path in order if int(path) % 2 == 0]
    assert order != [document.path for _, document in by_hash(iter(many), 4)]
