"""The demo's tokenizer."""

import functools
from pathlib import Path

import pytest
from gb10.demo.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, tokenizer_config, train_tokenizer
from gb10.errors import UserError
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

VOCABULARY = 4096


@functools.cache
def tokenizer() -> Tokenizer:
    return train_tokenizer(VOCABULARY)


@given(st.text())
@settings(deadline=None)
def test_any_text_survives(text: str) -> None:
    encoded = tokenizer().encode(text, add_special_tokens=False)
    if not any(token in text for token in SPECIAL_TOKENS):
        assert tokenizer().decode(encoded.ids, skip_special_tokens=False) == text


def test_vocabulary_is_full_and_special_tokens_come_first() -> None:
    assert tokenizer().get_vocab_size() == VOCABULARY
    assert [tokenizer().id_to_token(token) for token in range(3)] == list(SPECIAL_TOKENS)
    assert tokenizer().encode("a<|im_end|>b").ids.count(SPECIAL_TOKENS.index("<|im_end|>")) == 1


def test_it_has_learned_the_text() -> None:
    text = "def __init__(self, name):\n    return isinstance(name, str)\n"
    assert len(tokenizer().encode(text).ids) < len(text) / 2.5


def test_chat_template_is_chatml() -> None:
    jinja2 = pytest.importorskip("jinja2")
    messages = [{"role": "system", "content": "Be short."}, {"role": "assistant", "content": None}]
    rendered = jinja2.Template(CHAT_TEMPLATE).render(messages=messages, add_generation_prompt=True)
    assert rendered == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer_config(4096)["chat_template"] == CHAT_TEMPLATE


def test_a_vocabulary_that_the_text_cannot_fill() -> None:
    with pytest.raises(UserError, match="gives only"):
        train_tokenizer(10_000_000)


def test_a_missing_standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gb10.demo.tokenizer.sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=r"argparse\.py is missing"):
        train_tokenizer(VOCABULARY)
