"""The testbed model's tokenizer: byte-level BPE for Python sources, trained on a sample of the corpus."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from typer import Option

from gb10.errors import UserError
from gb10.files import replacing, write_json
from gb10_lab.text.documents import read_documents

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Ids 0, 1, 2. The first one stands before each document. Training text never has the others."""

VOCABULARY = 6144
"""Tokens, with the special ones and the 256 bytes."""

MAX_POSITIONS = 2048
"""The longest text in tokens, as in the model's config."""

SAMPLE_BYTES = 32_000_000
"""Text that the tokenizer is trained on, in bytes of UTF-8."""

SEED = 20261122
"""Decides which documents the sample has."""

_MAX_TOKEN_LENGTH = 32

_PIECES = (
    # Names like __init__, with the dot or the space before them.
    r"[ .]?__[a-z]+(?:_[a-z]+)*__",
    # A word, or a part of a snake_case name: " word", ".name", "_part".
    r"[ .]?_*\p{L}[\p{L}\p{M}]*",
    # One digit.
    r" ?\p{N}",
    # Line ends with the indentation of the line that follows.
    r"\n+[ \t]*",
    # Signs; a dot or underscores that begin a name stay with the name.
    r" ?(?:[^\s\p{L}\p{N}_.]|[_.](?!_*\p{L}))+",
    # Other spaces, except the one that belongs to what follows.
    r"[^\S\n]+(?= \S)",
    r"[^\S\n]+",
)
"""What a text is cut into; the first match counts. No token reaches over a cut; the rest is pieces, too."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- message['content'] or '' -}}"
    "{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
)
"""The messages' text and nothing else: the model continues text and knows no turns."""


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json. Raises UserError when it is none."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no narrower one
        raise UserError(f"cannot read the tokenizer {path}: {error}") from error


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Train a tokenizer of exactly `vocabulary` tokens. It gives every text back as it was.

    Raises UserError when the texts are too small for the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join(_PIECES)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_MAX_TOKEN_LENGTH,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    size = tokenizer.get_vocab_size()
    if size != vocabulary:
        raise UserError(f"the text gives only {size} of {vocabulary} tokens; give more text")
    return tokenizer


def sample(corpus: Path, limit: int, seed: int) -> list[str]:
    """Give texts of a random sample of the corpus with at most `limit` bytes; the first one at least.

    Raises UserError when the corpus cannot be read or is empty.
    """
    chosen: list[tuple[bytes, str]] = []
    for document in read_documents(corpus):
        # Another order than that in which the corpus was cut.
        key = hashlib.sha256(b"tokenizer" + document.key(seed)).digest()
        chosen.append((key, document.text))
    if not chosen:
        raise UserError(f"{corpus} holds no documents")
    chosen.sort(key=lambda item: item[0])
    texts: list[str] = []
    total = 0
    for _, text in chosen:
        total += len(text.encode())
        if texts and total > limit:
            break
        texts.append(text)
    return texts


def tokenizer_config() -> dict[str, Any]:
    """Give the content of `tokenizer_config.json`."""
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL_TOKENS[0],
        "model_max_length": MAX_POSITIONS,
        "pad_token": SPECIAL_TOKENS[0],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`. Raises UserError when they cannot be written."""
    with replacing(folder / "tokenizer.json") as part:
        part.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", tokenizer_config())


def run(
    corpus: Annotated[Path, Option(metavar="FILE", help="text to learn from (.jsonl or .jsonl.xz)")],
    out: Annotated[Path, Option(metavar="DIR", help="folder for the tokenizer's two files")],
    vocabulary: Annotated[int, Option(metavar="N", help="number of tokens")] = VOCABULARY,
    sample_bytes: Annotated[int, Option(metavar="N", help="text to learn from")] = SAMPLE_BYTES,
    seed: Annotated[int, Option(metavar="N")] = SEED,
) -> int:
    """Train and write the tokenizer, and say how long its tokens are."""
    texts = sample(corpus, sample_bytes, seed)
    tokenizer = train_tokenizer(texts, vocabulary)
    write_tokenizer(out, tokenizer)
    some = texts[:200]
    size = sum(len(text.encode()) for text in some)
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(some))
    print(f"{out}: {vocabulary} tokens, {size / tokens:.2f} bytes each on the training text")
    return 0
