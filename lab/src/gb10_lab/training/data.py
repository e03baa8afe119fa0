"""Corpus files, tokens and batches."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from gb10.errors import UserError
from gb10_lab.testbed.architecture import END_OF_TEXT
from gb10_lab.text.documents import Document

_DOCUMENTS_PER_CALL = 2048


def encode(tokenizer: Tokenizer, documents: Iterable[Document]) -> Tensor:
    """Give all documents as one row of token ids, int32 [n], each after an end-of-text token.

    The names of special tokens inside a text are encoded as the text that they are.
    """
    tokenizer.encode_special_tokens = True
    texts = [document.text for document in documents]
    parts: list[np.ndarray[tuple[int], np.dtype[np.int32]]] = [np.empty(0, np.int32)]
    for start in range(0, len(texts), _DOCUMENTS_PER_CALL):
        encodings = tokenizer.encode_batch_fast(texts[start : start + _DOCUMENTS_PER_CALL])
        parts += [np.array([END_OF_TEXT, *encoding.ids], np.int32) for encoding in encodings]
    return torch.from_numpy(np.concatenate(parts))


def shuffled(documents: list[Document], seed: int) -> list[Document]:
    """Give the documents in a random order that depends on nothing but their number and the seed."""
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed))
    return [documents[place] for place in order.tolist()]


def windows(stream: Tensor, length: int) -> Tensor:
    """Cut a row of tokens into windows of `length` + 1 tokens, each beginning with the last one's last token.

    Returns int64 [n, length + 1]; a rest is left out. Raises UserError when there is not one window.
    """
    count = (len(stream) - 1) // length
    if count < 1:
        raise UserError(f"the text has {len(stream)} tokens, fewer than one window of {length + 1}")
    places = torch.arange(count)[:, None] * length + torch.arange(length + 1)
    return stream.cpu()[places].long()


def batches(stream: Tensor, length: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Give batches of windows for ever: int64 [batch, length + 1] on the stream's device.

    Each pass over the text cuts it at another offset and takes the windows in another order.
    """
    generator = torch.Generator().manual_seed(seed)
    reach = torch.arange(length + 1, device=stream.device)
    waiting = torch.empty(0, dtype=torch.int64)
    if len(stream) < 2 * length + 1:
        raise UserError(f"the corpus has {len(stream)} tokens; training needs at least {2 * length + 1}")
    while True:
        while len(waiting) < batch:
            offset = int(torch.randint(length, (1,), generator=generator))
            count = (len(stream) - 1 - offset) // length
            waiting = torch.cat((waiting, torch.randperm(count, generator=generator) * length + offset))
        starts, waiting = waiting[:batch], waiting[batch:]
        yield stream[starts.to(stream.device)[:, None] + reach].long()
