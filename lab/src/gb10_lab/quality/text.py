"""Held-out text as windows of token ids, the same ones every time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from gb10.errors import UserError
from gb10_lab.text.documents import by_hash, read_documents

SEPARATOR = "<|endoftext|>"


@dataclass(frozen=True)
class Sample:
    """Windows of held-out text."""

    tokens: torch.Tensor
    """int64 `[windows, window]`. Documents follow each other, each behind one separator."""
    documents: int
    """How many documents the windows hold, whole or a part of each."""
    bytes: int
    """UTF-8 bytes of all tokens but the first of each window: of those that are predicted."""
    sha256: str
    """Of the token ids, little-endian 4-byte numbers, row by row."""

    @property
    def predictions(self) -> int:
        """Tokens that are predicted: all but the first of each window."""
        return self.tokens.numel() - self.tokens.shape[0]


def sample(file: Path, tokenizer: Tokenizer, *, tokens: int, window: int, seed: int) -> Sample:
    """Take `tokens` tokens (rounded up to whole windows of `window`) from a file of JSON lines.

    Each line is `{"package": ..., "path": ..., "text": ...}`. The documents come in the order of a hash of
    the seed and their name. None gives more than a window: a longer one gives a part at a place that the hash
    chooses, so that large files do not stand for the whole text.

    Raises UserError when the file cannot be read, is no such file, or holds too little text.
    """
    separator = tokenizer.token_to_id(SEPARATOR)
    if separator is None:
        raise UserError(f"the tokenizer has no {SEPARATOR} token; take the model that gb10_lab.testbed made")
    windows = -(-tokens // window)
    ids: list[int] = []
    documents = 0
    for digest, entry in by_hash(read_documents(file), seed):
        if len(ids) >= windows * window:
            break
        document = tokenizer.encode(entry.text, add_special_tokens=False).ids
        surplus = max(0, len(document) - (window - 1))
        begin = int.from_bytes(digest[:8], "big") % (surplus + 1)
        ids += [separator, *document[begin : begin + window - 1]]
        documents += 1
    if len(ids) < windows * window:
        raise UserError(f"{file} gives {len(ids)} tokens, {windows * window} are wanted; lower --tokens")
    taken = torch.tensor(ids[: windows * window], dtype=torch.int64).reshape(windows, window)
    return Sample(taken, documents, _bytes(taken[:, 1:], tokenizer), _sha256(taken))


def _bytes(ids: torch.Tensor, tokenizer: Tokenizer) -> int:
    """A byte-level token is written with one character for each of its bytes; a special token has none."""
    added = tokenizer.get_added_tokens_decoder()
    sizes = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.int64)
    for word, number in tokenizer.get_vocab().items():
        sizes[number] = 0 if number in added else len(word)
    return int(sizes[ids].sum())


def _sha256(ids: torch.Tensor) -> str:
    return hashlib.sha256(ids.numpy().astype("<u4").tobytes()).hexdigest()
