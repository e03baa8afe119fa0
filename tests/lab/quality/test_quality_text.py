"""Which held-out tokens are measured."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from gb10.errors import UserError
from gb10_lab.quality.text import SEPARATOR, sample

WORDS = ("alpha", "beta", "gamma", "delta", "straße", "λ")


@pytest.fixture
def tokenizer(byte_tokenizer: Tokenizer) -> Tokenizer:
    return byte_tokenizer


def document(number: int, repeat: int = 6) -> dict[str, str]:
    words = " ".join(f"{word}{number}" for word in WORDS)
    return {"package": "p", "path": f"{number}.py", "text": (words + "\n") * repeat}


def write(folder: Path, documents: list[dict[str, str]]) -> Path:
    file = folder / "heldout.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in documents), encoding="utf-8")
    return file


def test_every_document_follows_a_separator_and_is_a_part_of_its_text(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    documents = [document(number) for number in range(20)]
    taken = sample(write(tmp_path, documents), tokenizer, tokens=600, window=64, seed=0)
    assert taken.tokens.shape == (10, 64)
    ids = taken.tokens.flatten().tolist()
    assert ids[0] == 0
    assert ids.count(0) == taken.documents
    pieces = tokenizer.decode(ids, skip_special_tokens=False).split(SEPARATOR)[1:]
    # A part may begin or end inside a character of two bytes, and the last one is cut.
    texts = [each["text"] for each in documents]
    assert all(any(piece.strip("�") in text for text in texts) for piece in pieces)
    assert len({piece.strip("�") for piece in pieces}) == len(pieces)


def test_a_part_of_a_long_document_is_shorter_than_a_window(tmp_path: Path, tokenizer: Tokenizer) -> None:
    documents = [document(number, repeat=500) for number in range(20)]
    taken = sample(write(tmp_path, documents), tokenizer, tokens=640, window=64, seed=0)
    # Each one gives 63 tokens and its separator: all windows begin with a separator.
    assert taken.documents == 10
    assert taken.tokens[:, 0].tolist() == [0] * 10
    # The parts are not all from the beginning.
    starts = {tokenizer.decode(row[1:6].tolist()) for row in taken.tokens}
    assert len(starts) > 5


def test_bytes_are_those_of_the_predicted_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    documents = [document(number, repeat=500) for number in range(20)]
    taken = sample(write(tmp_path, documents), tokenizer, tokens=640, window=64, seed=0)
    # One byte a token; each window's first token is its separator, which is not predicted.
    assert taken.bytes == taken.predictions == 10 * 63


def test_the_seed_decides_and_the_order_of_the_file_does_not(tmp_path: Path, tokenizer: Tokenizer) -> None:
    documents = [document(number) for number in range(20)]
    first = sample(write(tmp_path, documents), tokenizer, tokens=600, window=64, seed=0)
    again = sample(write(tmp_path, documents[::-1]), tokenizer, tokens=600, window=64, seed=0)
    other = sample(write(tmp_path, documents), tokenizer, tokens=600, window=64, seed=1)
    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256


def test_too_little_text_says_how_much_there_is(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = write(tmp_path, [{"package": "p", "path": "a", "text": "0123456789"}])
    with pytest.raises(UserError, match=r"gives 11 tokens, 128 are wanted"):
        sample(file, tokenizer, tokens=128, window=64, seed=0)


@pytest.mark.parametrize("line", ["no json", '{"package": "p", "path": "x"}', '["a"]'])
def test_a_line_that_is_no_document_is_named(line: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(document(1)) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2 is no document"):
        sample(file, tokenizer, tokens=128, window=64, seed=0)


def test_a_missing_file_and_a_tokenizer_without_separator_are_user_errors(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    with pytest.raises(UserError, match="cannot read documents from"):
        sample(tmp_path / "none", tokenizer, tokens=128, window=64, seed=0)
    bare = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    with pytest.raises(UserError, match="no <|endoftext|>".replace("|", r"\|")):
        sample(tmp_path / "none", bare, tokens=128, window=64, seed=0)
