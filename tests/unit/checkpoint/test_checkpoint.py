"""What is refused about a model before vLLM starts."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gb10.checkpoint import headers
from gb10.checkpoint.folder import Checkpoint
from gb10.checkpoint.headers import Tensor, read_header
from gb10.checkpoint.hub import locate
from gb10.errors import UserError

Make = Callable[..., Path]


def refuse(model: Path | str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        locate(str(model))
    assert "\n" not in str(caught.value)


def test_a_good_checkpoint(make_checkpoint: Make) -> None:
    found = locate(str(make_checkpoint(config={"num_experts": 512, "torch_dtype": "bfloat16"})))
    assert found.label == "model"
    assert found.experts == 512
    assert found.max_tokens == 2048
    assert not found.has_gdn
    assert [tensor.size for tensor in found.tensors] == [1024]


def test_a_header_is_read_once(make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """`gb10 serve` looks, vLLM's process looks, and its rehearsal of the load does, by another path."""
    folder = make_checkpoint()
    (folder.parent / "link").symlink_to(folder)
    read: list[Path] = []
    stock = headers._header

    def counted(path: Path, *given: Any) -> list[Tensor]:
        read.append(path)
        return stock(path, *given)

    monkeypatch.setattr(headers, "_header", counted)
    first = headers.read_weights(folder)
    assert headers.read_weights(folder) == headers.read_weights(folder.parent / "link") == first
    assert len(read) == 1
    other = make_checkpoint("other", tensors={"other": ("BF16", (8, 64))})
    (other / "model.safetensors").replace(folder / "model.safetensors")
    assert [tensor.name for tensor in headers.read_weights(folder)] == ["other"]
    headers.forget()
    headers.read_weights(folder)
    assert len(read) == 3


def test_relative_path_becomes_absolute(make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint()
    monkeypatch.chdir(folder.parent)
    assert locate("model").name == str(folder)


def test_missing_and_not_a_checkpoint(tmp_path: Path) -> None:
    refuse(tmp_path / "absent", "absent does not exist; give a checkpoint folder or a hub name")
    refuse(tmp_path, "is not a checkpoint: it has no config.json")
    (tmp_path / "file").write_text("x")
    refuse(tmp_path / "file", "is a file; give the folder")
    for name in ("not a name!", "a/b/c", "/no/a", "./no-a", "~/no-a", "a--b", "x" * 100):
        refuse(name, "does not exist; give a checkpoint folder or a hub name")
    refuse("x" * 5000, "cannot be read: file name too long")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config .* is not valid JSON"),
        ("", "is not valid JSON"),
        ("\xff\xfe", "is not valid JSON"),
        ("[1]", "is not a JSON object"),
        ('{"model_type": "x"}', "names no architectures"),
    ],
)
def test_bad_config(make_checkpoint: Make, text: str, message: str) -> None:
    folder = make_checkpoint()
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refuse(folder, message)


def test_no_weights_and_no_tokenizer(make_checkpoint: Make) -> None:
    folder = make_checkpoint()
    (folder / "tokenizer.json").unlink()
    refuse(folder, r"has no tokenizer \(tokenizer.json\); add it or give --tokenizer NAME")
    assert locate(str(folder), tokenizer=False).tensors
    (folder / "model.safetensors").unlink()
    refuse(folder, "has a config.json and no weights")
    assert locate(str(folder), weights=False, tokenizer=False).tensors == ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not a safetensors file"),
        (struct.pack("<Q", 5) + b"{oops", "damaged safetensors header"),
        (struct.pack("<Q", 7) + b'{"a":1}', "damaged safetensors header"),
        (
            struct.pack("<Q", 54) + b'{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}} ' + b"1234",
            "is cut short: 66 bytes, its header promises 71",
        ),
    ],
)
def test_bad_weights(make_checkpoint: Make, data: bytes, message: str) -> None:
    folder = make_checkpoint()
    (folder / "model.safetensors").write_bytes(data)
    refuse(folder, message)


def test_index_names_missing_shards(make_checkpoint: Make) -> None:
    folder = make_checkpoint()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(folder, "lacks model-1.safetensors and 1 more, which its index names")
    (folder / "model.safetensors.index.json").write_text("{}")
    refuse(folder, "has no weight_map")


def _as_nobody(act: Callable[[], object]) -> str:
    """Run ``act`` as an unprivileged user in a child process; the UserError text it ended with."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            act()
            text = "no error"
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        return file.read()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "."])
def test_unreadable_checkpoint(make_checkpoint: Make, name: str) -> None:
    folder = make_checkpoint()
    for parent in folder.parents:
        if parent.stat().st_uid == os.getuid() and parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(0o755)
    (folder / name).chmod(0o000)
    try:
        text = _as_nobody(lambda: locate(str(folder)))
    finally:
        (folder / name).chmod(0o755)
    assert text.startswith("UserError: "), text
    assert "cannot be read: permission denied" in text
    assert "chmod a+r" in text


def test_read_header_ignores_metadata(tmp_path: Path) -> None:
    text = b'{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    assert [(tensor.name, tensor.size) for tensor in read_header(path)] == [("a", 4)]


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 4096, "seq_length": 2048}, 2048),
        ({"text_config": {"max_sequence_length": 77}}, 77),
        ({"max_position_embeddings": True}, None),
        ({"max_position_embeddings": 10**50}, None),
        ({}, None),
    ],
)
def test_the_context_of_the_config(config: dict[str, object], tokens: int | None) -> None:
    assert Checkpoint("m", config=config).max_tokens == tokens


@pytest.mark.parametrize("names", [[], "X", [1], {"a": 1}, None, 5])
def test_architectures_are_names(make_checkpoint: Make, names: object) -> None:
    refuse(make_checkpoint(config={"architectures": names}), "names no architectures")


@pytest.mark.parametrize("file", [None, 5, ["model.safetensors"], {"a": 1}])
def test_an_index_names_files(make_checkpoint: Make, file: object) -> None:
    folder = make_checkpoint()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    refuse(folder, "names no file for a; fetch the checkpoint again")


@pytest.mark.parametrize("file", ["x" * 5000, "a\0b", "../model/model.safetensors", "/etc/passwd", ""])
def test_an_index_names_files_of_the_folder(make_checkpoint: Make, file: str) -> None:
    folder = make_checkpoint()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    refuse(folder, "lacks .*, which its index names")


@pytest.mark.parametrize("text", ['{"a":' * 100_000, "[" * 100_000])
def test_json_that_is_nested_too_deeply(make_checkpoint: Make, text: str) -> None:
    folder = make_checkpoint()
    (folder / "config.json").write_text(text)
    refuse(folder, "config .* is nested too deeply")


def test_gdn_is_seen() -> None:
    assert Checkpoint("m", config={"linear_num_value_heads": 4}).has_gdn
    assert Checkpoint("m", config={"text_config": {"layer_types": ["linear_attention"]}}).has_gdn
