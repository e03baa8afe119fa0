"""The folder of a full-size model that can be served: every token is a word of its own."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from gb10.files import read_json
from gb10_lab.cli import main

SIZE = 151936


@pytest.fixture
def small(tmp_path: Path) -> Path:
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["def connect(host, port): return connect(host, port)"] * 9, trainer)
    folder = tmp_path / "small"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


def test_every_token_is_text(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shape", "--tokenizer", str(small), "--out", str(tmp_path), "--layers", "4"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert read_json(folder / "config.json")["num_hidden_layers"] == 4
    wide, before = (Tokenizer.from_file(str(one / "tokenizer.json")) for one in (folder, small))
    assert wide.get_vocab_size() == SIZE
    ids = [before.get_vocab_size(), 5000, 100000, SIZE - 1]
    assert wide.decode(ids).split() == [f"t{one}" for one in ids]
    text = "def connect(host, port): t5000 grüße"
    assert wide.encode(text).ids == before.encode(text).ids
    assert wide.decode(wide.encode(text).ids) == text


def test_no_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shape", "--tokenizer", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "has no tokenizer_config.json" in capsys.readouterr().err
