"""Prompts end inside functions and docstrings, and are the same ones every time."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gb10.errors import UserError
from gb10_lab.speculative.prompts import CODE, DOCSTRING, LONGEST, SHORTEST, TEXT, read_prompts

DOCSTRING_WORDS = "Return the number of parts that the given string has when it is cut at each separator."


def _module(number: int) -> str:
    filler = "\n".join(f"VALUE_{number}_{line} = {line * 7}" for line in range(60))
    return f'''{filler}


def function_{number}(text, separator):
    """{DOCSTRING_WORDS}"""
    first_{number} = text.split(separator)
    second_{number} = len(first_{number})
    third_{number} = second_{number} + 1
    return third_{number}


# é: offsets are those of characters, not of bytes.
'''


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: at for at, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


@pytest.fixture
def held_out(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    def write(documents: dict[str, str]) -> Path:
        file = tmp_path / "held-out.jsonl"
        lines = [json.dumps({"package": "p", "path": name, "text": text}) for name, text in documents.items()]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return file

    return write


def test_docstrings_and_code_take_turns(
    held_out: Callable[[dict[str, str]], Path], tokenizer: Tokenizer
) -> None:
    file = held_out({f"m{number}.py": _module(number) for number in range(12)})
    prompts = read_prompts(file, tokenizer, 8)
    assert [prompt.kind for prompt in prompts] == [DOCSTRING, CODE] * 4
    assert len({prompt.name for prompt in prompts}) == 8
    for prompt in prompts:
        assert SHORTEST <= len(prompt.ids) <= LONGEST
        text = tokenizer.decode(list(prompt.ids))
        if prompt.kind == DOCSTRING:
            begun = text.rpartition('"""')[2]
            assert DOCSTRING_WORDS.startswith(begun)
            assert 10 < len(begun) < len(DOCSTRING_WORDS)
        else:
            assert text.endswith(".split(separator)\n")
    lengths = {len(prompt.ids) for prompt in prompts}
    assert len(lengths) > 4, "prompts should differ in length"


def test_the_seed_chooses(held_out: Callable[[dict[str, str]], Path], tokenizer: Tokenizer) -> None:
    file = held_out({f"m{number}.py": _module(number) for number in range(12)})
    assert read_prompts(file, tokenizer, 4) == read_prompts(file, tokenizer, 4)
    assert read_prompts(file, tokenizer, 4) != read_prompts(file, tokenizer, 4, seed=1)


def test_other_text_fills_up(held_out: Callable[[dict[str, str]], Path], tokenizer: Tokenizer) -> None:
    documents = {f"d{number}.rst": f"word{number} and more " * 60 for number in range(3)}
    documents |= {"m.py": _module(0), "broken.py": "def (:\n" * 300, "short.rst": "too short"}
    prompts = read_prompts(held_out(documents), tokenizer, 4)
    assert sorted(prompt.kind for prompt in prompts) == sorted([prompts[0].kind, TEXT, TEXT, TEXT])
    assert prompts[0].name == "p/m.py"
    assert not tokenizer.decode(list(prompts[-1].ids)).endswith(" ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not json\n", "line 1 is no document"),
        ('{"package": "p", "path": "x"}\n', "line 1 is no document"),
        ("", "gives 0 prompts"),
        (json.dumps({"package": "p", "path": "a.rst", "text": "word " * 500}) + "\n", "gives 1 prompts"),
    ],
)
def test_bad_files(tmp_path: Path, tokenizer: Tokenizer, content: str, said: str) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=said):
        read_prompts(file, tokenizer, 2)


def test_missing_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="cannot read documents from"):
        read_prompts(tmp_path / "none", tokenizer, 2)
