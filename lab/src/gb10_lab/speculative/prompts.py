"""Prompts from held-out text, cut where a completion is worth something."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from gb10.errors import UserError
from gb10_lab.text.documents import by_hash, read_documents

SHORTEST, LONGEST = 200, 600
"""Tokens of a prompt."""

DOCSTRING, CODE, TEXT = "docstring", "code", "text"


@dataclass(frozen=True)
class Prompt:
    """Token ids that end in the middle of something."""

    name: str
    """Package and path of the document."""
    kind: str
    """`docstring` or `code` (inside a Python function), or `text`."""
    ids: tuple[int, ...]


def read_prompts(file: Path, tokenizer: Tokenizer, count: int, seed: int = 0) -> list[Prompt]:
    """Cut `count` prompts from a file of JSON lines {"package": .., "path": .., "text": ..}.

    Documents come in the order of a hash of the seed and their name; each gives one prompt. Docstrings and
    code take turns; other text fills up when there is too little Python.

    Raises UserError when the file cannot be read, is no such file, or holds too little text.
    """
    by_kind: dict[str, list[Prompt]] = {DOCSTRING: [], CODE: [], TEXT: []}
    for digest, document in by_hash(read_documents(file), seed):
        name, text = document.name, document.text
        short = min((DOCSTRING, CODE), key=lambda kind: len(by_kind[kind]))
        if len(by_kind[short]) * 2 >= count:
            break
        for kind, end in _cuts(name, text, digest, short):
            if (ids := _ids(tokenizer, text[:end], digest)) is not None:
                by_kind[kind].append(Prompt(name, kind, ids))
                break
    chosen = [prompt for pair in zip(by_kind[DOCSTRING], by_kind[CODE], strict=False) for prompt in pair]
    taken = {prompt.name for prompt in chosen}
    chosen += [prompt for kind in by_kind.values() for prompt in kind if prompt.name not in taken]
    if len(chosen) < count:
        raise UserError(f"{file} gives {len(chosen)} prompts of {SHORTEST} tokens or more; lower --prompts")
    return chosen[:count]


def _cuts(name: str, text: str, digest: bytes, wanted: str) -> Iterator[tuple[str, int]]:
    """Places to cut, as (kind, characters before the cut): the wanted kind, from where the hash says."""
    if not name.endswith(".py"):
        yield TEXT, _word_end(text, len(text) // 2)
        return
    ends = _inside_functions(text, wanted)
    start = digest[0] % len(ends) if ends else 0
    yield from ((wanted, end) for end in ends[start:] + ends[:start])


def _inside_functions(text: str, kind: str) -> list[int]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return []
    # Offsets of lines by the parser's own idea of a line: it ends with a newline alone.
    line_starts = [0] + [match.end() for match in re.finditer("\n", text)]
    ends = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        documented = ast.get_docstring(node) is not None
        if kind == DOCSTRING and documented:
            first, last = node.body[0].lineno, node.body[0].end_lineno or node.body[0].lineno
            begin = line_starts[first - 1]
            end = line_starts[last] if last < len(line_starts) else len(text)
            if end - begin >= 80:
                ends.append(_word_end(text, (begin + end) // 2))
        if kind == CODE and len(node.body) - documented >= 3:
            ends.append(line_starts[node.body[1 + documented].lineno - 1])
    return ends


def _word_end(text: str, position: int) -> int:
    """The end of the word at `position`, without the space behind it."""
    match = re.compile(r"\s").search(text, position)
    return match.start() if match else len(text)


def _ids(tokenizer: Tokenizer, text: str, digest: bytes) -> tuple[int, ...] | None:
    """The last tokens of a text: SHORTEST to LONGEST, by the hash; None when there are fewer."""
    length = SHORTEST + int.from_bytes(digest[1:5], "big") % (LONGEST - SHORTEST + 1)
    # Far enough back for any tokenizer, so that a large file need not be encoded whole.
    ids = tokenizer.encode(text[-32 * LONGEST :], add_special_tokens=False).ids
    return tuple(ids[-length:]) if len(ids) >= SHORTEST else None
