"""The testbed's tokenizer: it loses nothing, cuts code where it should, and is the same every time."""

import functools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gb10.errors import UserError
from gb10_lab.cli import main
from gb10_lab.text import corpus
from gb10_lab.text.corpus import write_documents
from gb10_lab.text.documents import Document
from gb10_lab.text.tokenizer import (
    CHAT_TEMPLATE,
    MAX_POSITIONS,
    SPECIAL_TOKENS,
    sample,
    train_tokenizer,
    write_tokenizer,
)

VOCABULARY = 1024


def sources() -> list[str]:
    """Text to learn from: this project's own modules."""
    return [path.read_text(encoding="utf-8") for path in sorted(Path(corpus.__file__).parent.glob("*.py"))]


@functools.cache
def tokenizer() -> Tokenizer:
    return train_tokenizer(sources(), VOCABULARY)


def round_trip(text: str) -> str:
    back: str = tokenizer().decode(tokenizer().encode(text).ids, skip_special_tokens=False)
    return back


@given(st.text() | st.text(alphabet=" \t\n\r._a1\u00e9\u0301(){}\u2028"))
@example("  lead and end  ")
@example("<|im_end|>\r\n\t x\x00")
@settings(deadline=None)
def test_any_text_survives(text: str) -> None:
    assert round_trip(text) == text


def pieces(text: str) -> list[str]:
    """What a text is cut into."""
    pre = tokenizer().pre_tokenizer
    assert pre is not None
    return [text[start:end] for _, (start, end) in pre.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = b\n\n    return x", ["a", " =", " b", "\n\n    ", "return", " x"]),
        ("max_batch_size", ["max", "_batch", "_size"]),
        ("conv2d(1024, 3)", ["conv", "2", "d", "(", "1", "0", "2", "4", ",", " 3", ")"]),
        ("super().__init__(_a)", ["super", "()", ".__init__", "(", "_a", ")"]),
        ("self._cache.append", ["self", "._cache", ".append"]),
        ("x    # note", ["x", "   ", " #", " note"]),
        ('"""Doc."""', ['"""', "Doc", '."""']),
        ("...  ", ["...", "  "]),
        ("na\u00efve caf\u00e9s", ["na\u00efve", " caf\u00e9s"]),
    ],
)
def test_where_code_is_cut(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected


def test_no_token_reaches_over_a_cut() -> None:
    text = Path(corpus.__file__).read_text(encoding="utf-8")
    assert text.isascii()
    pre = tokenizer().pre_tokenizer
    assert pre is not None
    cuts = {start for _, (start, _) in pre.pre_tokenize_str(text)}
    starts = {start for start, _ in tokenizer().encode(text).offsets}
    assert cuts <= starts
    assert len(cuts) > 0.4 * len(starts)


def test_special_tokens_come_first() -> None:
    assert tokenizer().get_vocab_size() == VOCABULARY
    assert [tokenizer().id_to_token(token) for token in range(3)] == list(SPECIAL_TOKENS)
    assert tokenizer().encode("a<|endoftext|>b").ids.count(0) == 1


def test_it_has_learned_the_text() -> None:
    text = "def read(self, path: Path) -> str:\n    return path.read_text()\n"
    assert len(tokenizer().encode(text).ids) < len(text) / 2


def test_too_little_text() -> None:
    with pytest.raises(UserError, match=r"gives only \d+ of 6144 tokens"):
        train_tokenizer(["def f():\n    pass\n"])


def test_transformers_reads_the_folder(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path, tokenizer())
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "def f( x ) :\n    don't , . !\n"
    ids = loaded(text)["input_ids"]
    assert ids == tokenizer().encode(text).ids
    assert loaded.decode(ids) == text
    assert (loaded.eos_token_id, loaded.pad_token_id, loaded.bos_token_id) == (0, 0, None)
    assert loaded.model_max_length == MAX_POSITIONS
    messages = [
        {"role": "system", "content": "import os\n"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "def f():"},
    ]
    for prompt in (False, True):
        rendered = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert rendered == "import os\n\n\ndef f():"
    assert loaded.chat_template == CHAT_TEMPLATE


def write_corpus(path: Path) -> list[Document]:
    words = random.Random(5)
    documents = [
        Document(f"p{number % 7}", f"p/{number}.py", text[start : start + 3000])
        for number, (text, start) in enumerate(
            (text, start) for text in sources() for start in range(0, len(text), 3000)
        )
    ]
    words.shuffle(documents)
    write_documents(path, documents)
    return documents


def test_the_sample(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl.xz"
    texts = [document.text for document in write_corpus(path)]
    assert sorted(sample(path, 10**9, 1)) == sorted(texts)
    some = sample(path, 20_000, 1)
    assert 10_000 < sum(len(text.encode()) for text in some) <= 20_000
    assert some == sample(path, 20_000, 1)
    assert some != sample(path, 20_000, 2)
    assert len(sample(path, 1, 1)) == 1
    path.write_bytes(b"")
    with pytest.raises(UserError):
        sample(path, 1, 1)


def test_the_command_gives_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "corpus.jsonl", tmp_path / "tokenizer"
    write_corpus(path)
    options = ["tokenizer", "--corpus", str(path), "--vocabulary", "800"]
    assert main([*options, "--out", str(out)]) == 0
    assert "800 tokens" in capsys.readouterr().out
    files = {item.name: item.read_bytes() for item in out.iterdir()}
    assert set(files) == {"tokenizer.json", "tokenizer_config.json"}
    assert json.loads(files["tokenizer_config.json"])["add_prefix_space"] is False
    # Another process, with another number of threads and other random hashes.
    environment = os.environ | {"RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-m", "gb10_lab", *options, "--out", str(tmp_path / "again")]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert {item.name: item.read_bytes() for item in (tmp_path / "again").iterdir()} == files
    assert main(["tokenizer", "--corpus", str(tmp_path / "none.jsonl"), "--out", str(out)]) == 2
    assert "cannot read documents" in capsys.readouterr().err
