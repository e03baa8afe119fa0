"""The tokenizer: byte-level BPE, trained on the sources of Python's own standard library."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gb10.errors import UserError

END_OF_TEXT = "<|endoftext|>"
START_OF_TURN = "<|im_start|>"
END_OF_TURN = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN)

CORPUS = (
    "argparse.py",
    "ast.py",
    "asyncio/base_events.py",
    "asyncio/tasks.py",
    "collections/__init__.py",
    "concurrent/futures/_base.py",
    "configparser.py",
    "contextlib.py",
    "csv.py",
    "dataclasses.py",
    "datetime.py",
    "difflib.py",
    "doctest.py",
    "email/message.py",
    "enum.py",
    "fractions.py",
    "functools.py",
    "heapq.py",
    "http/client.py",
    "http/server.py",
    "inspect.py",
    "json/encoder.py",
    "logging/__init__.py",
    "optparse.py",
    "pathlib.py",
    "pickle.py",
    "random.py",
    "shutil.py",
    "socket.py",
    "statistics.py",
    "string.py",
    "subprocess.py",
    "tarfile.py",
    "tempfile.py",
    "textwrap.py",
    "threading.py",
    "typing.py",
    "unittest/case.py",
    "unittest/mock.py",
    "urllib/parse.py",
    "urllib/request.py",
    "uuid.py",
    "zipfile.py",
)
"""Files of the standard library, in the order in which they are read."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""ChatML. A message's content is a string; vLLM joins text parts to one before it gets here."""


def train_tokenizer(vocabulary: int) -> Tokenizer:
    """Train a tokenizer of exactly `vocabulary` tokens. The special tokens have the first ids.

    Raises UserError when a source file is missing or the text is too small for the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus_texts(), trainer)
    size = tokenizer.get_vocab_size()
    if size != vocabulary:
        raise UserError(f"the standard library's text gives only {size} of {vocabulary} tokens")
    return tokenizer


def tokenizer_config(max_positions: int) -> dict[str, Any]:
    """Give the content of `tokenizer_config.json`."""
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TURN,
        "model_max_length": max_positions,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def _corpus_texts() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for name in CORPUS:
        # Python 3.12 made a package of zipfile.py: the same module, another file name.
        candidates = (root / name, root / name.removesuffix(".py") / "__init__.py")
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            raise UserError(
                f"the tokenizer is trained on Python's standard library, but {root / name} is missing; "
                "install the full standard library (Debian: libpython3-stdlib)"
            )
        yield path.read_text(encoding="utf-8")
