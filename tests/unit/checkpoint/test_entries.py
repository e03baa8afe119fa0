"""What is no file is refused in one line, wherever it stands in a checkpoint; nothing waits for a pipe."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from gb10.checkpoint.chat import has_template
from gb10.checkpoint.headers import read_header
from gb10.checkpoint.hub import locate
from gb10.errors import UserError
from gb10.files import open_regular, read_bytes, read_json, sha256

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def never_waits() -> Iterator[None]:
    """A test that opens a pipe would wait for ever."""

    def fail(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    here = Path.cwd()
    # A socket's path has 107 bytes at most.
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS = [
    (pipe, r"a named pipe \(FIFO\)"),
    (bound, "a socket"),
    (device, "a device"),
    (Path.mkdir, "a folder"),
]


@pytest.mark.parametrize(("make", "kind"), KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
        "chat_template.jinja",
        "hf_quant_config.json",
        "generation_config.json",
        "additional_chat_templates/tool.jinja",
    ],
)
def test_no_file(make_checkpoint: Make, name: str, make: Callable[[Path], None], kind: str) -> None:
    path = make_checkpoint() / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    make(path)
    folder = str(path.parents[name.count("/")])
    with pytest.raises(UserError, match=f"^{path} is {kind}, not a file; ") as caught:
        locate(folder)
    assert "\n" not in str(caught.value)
    # Tools that skip the weights look as well.
    with pytest.raises(UserError, match=kind):
        locate(folder, weights=False, tokenizer=False)


def test_a_pipe_of_any_name_and_behind_a_link(make_checkpoint: Make, tmp_path: Path) -> None:
    folder = make_checkpoint()
    pipe(tmp_path / "elsewhere")
    (folder / "merges").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"merges is a named pipe"):
        locate(str(folder))


def test_what_does_not_matter(make_checkpoint: Make) -> None:
    """Links that lead nowhere, hidden things (.git has sockets), folders, and what lies deeper."""
    folder = make_checkpoint()
    (folder / "gone.json").symlink_to("nowhere")
    (folder / "round").symlink_to("round")
    (folder / "onnx" / "more").mkdir(parents=True)
    (folder / ".git").mkdir()
    for name in (".git/ipc", ".hidden", "onnx/more/x"):
        pipe(folder / name)
    assert locate(str(folder)).tensors


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"]
)
def test_a_file_that_cannot_be_read(make_checkpoint: Make, name: str) -> None:
    folder = make_checkpoint()
    (folder / "README").write_text("x")
    (folder / "README").chmod(0)
    assert locate(str(folder)).tensors
    (folder / name).touch()
    (folder / name).chmod(0)
    with pytest.raises(UserError, match=rf"{name} cannot be read: permission denied; try: chmod a\+r"):
        locate(str(folder))


@pytest.mark.parametrize(("make", "kind"), KINDS)
def test_readers_do_not_wait(tmp_path: Path, make: Callable[[Path], None], kind: str) -> None:
    """Each for itself: a folder may change after it was looked at."""
    path = tmp_path / "tokenizer_config.json"
    make(path)
    for read in (open_regular, read_bytes, sha256):
        with pytest.raises(OSError, match=f"it is {kind}, not a file"):
            read(path)
    for read_ in (read_json, read_header):
        with pytest.raises(UserError, match=f"^[^\n]*cannot read|cannot be read: it is {kind}, not a file"):
            read_(path)
    assert not has_template(tmp_path)


def test_a_pipe_as_the_model(tmp_path: Path) -> None:
    pipe(tmp_path / "model")
    with pytest.raises(UserError, match=r"model is a named pipe \(FIFO\); give the folder"):
        locate(str(tmp_path / "model"))


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(256)) * 1000)
    (tmp_path / "link").symlink_to(path)
    assert read_bytes(tmp_path / "link") == path.read_bytes()
    with open_regular(path) as file:
        assert not os.get_inheritable(file.fileno())
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")
