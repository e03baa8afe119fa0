"""Models of Hugging Face's hub: what is cached, which revision, and what is left to vLLM to fetch.

huggingface_hub reads its variables when it is imported, so its constants are set here.
"""

import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gb10.checkpoint.hub import locate
from gb10.errors import UserError
from huggingface_hub import constants

Make = Callable[..., Path]
NAME = "org/name"
A, B = "a" * 40, "b" * 40
PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


class Cache:
    """A cache of the hub made of files, as huggingface_hub lays it out."""

    def __init__(self, folder: Path, make: Make) -> None:
        self.repo = folder / "models--org--name"
        self._make = make

    def snapshot(self, commit: str, *without: str) -> Path:
        """A snapshot, whole but for the files ``without``."""
        folder = self.repo / "snapshots" / commit
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._make(name=commit).rename(folder)
        for name in without:
            (folder / name).unlink()
        return folder

    def ref(self, text: str, name: str = "main") -> None:
        (self.repo / "refs").mkdir(exist_ok=True)
        (self.repo / "refs" / name).write_text(text)


@pytest.fixture
def cache(tmp_path: Path, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """An empty cache; the hub cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    return Cache(tmp_path / "hub", make_checkpoint)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, cache: Cache) -> Iterator[list[str]]:
    """A hub that answers; the paths it was asked for."""
    asked: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    server.server_close()


def refuse(message: str, revision: str | None = None) -> None:
    with pytest.raises(UserError, match=message) as caught:
        locate(NAME, revision=revision)
    assert "\n" not in str(caught.value)


def test_without_network(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse("model org/name is neither a folder nor in the Hugging Face cache .* the hub cannot be reached")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refuse(
        "neither a folder nor in the Hugging Face cache .* HF_HUB_OFFLINE is set; give a folder or unset it"
    )


def test_what_is_not_cached_is_left_to_vllm(hub: list[str]) -> None:
    found = locate(NAME)
    assert (found.source, found.label, found.folder, found.config) == (NAME, NAME, None, {})
    assert len(hub) == 1


def test_a_cached_model_needs_no_hub(cache: Cache) -> None:
    snapshot = cache.snapshot(A)
    cache.ref(A)
    found = locate(NAME)
    assert (found.name, found.label, found.folder) == (NAME, NAME, snapshot)
    assert found.source == str(snapshot)
    assert found.tensors


@pytest.mark.parametrize("ref", [A, A + "\n", None], ids=["whole", "staged by hand", "fetched by commit"])
def test_any_ref_finds_the_snapshot(cache: Cache, ref: str | None) -> None:
    snapshot = cache.snapshot(A)
    if ref is not None:
        cache.ref(ref)
    assert locate(NAME).folder == snapshot


def test_the_snapshot_of_main_counts_not_the_newest(cache: Cache) -> None:
    snapshot = cache.snapshot(A)
    cache.ref(A)
    os.utime(cache.snapshot(B, "model.safetensors"), (2e9, 2e9))
    assert locate(NAME).folder == snapshot


def test_the_snapshot_of_the_revision_counts(cache: Cache) -> None:
    cache.snapshot(A)
    cache.ref(A)
    other = cache.snapshot(B)
    cache.ref(B, "v2")
    assert locate(NAME, revision=B).folder == other
    assert locate(NAME, revision="v2").folder == other
    refuse(r"model org/name \(revision v3\) is neither .* the hub cannot be reached", revision="v3")


def test_another_revision_is_left_to_vllm(cache: Cache, hub: list[str]) -> None:
    cache.snapshot(A)
    cache.ref(A)
    assert locate(NAME, revision=B).folder is None


MISSING = ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("missing", MISSING)
def test_an_interrupted_download_goes_on(cache: Cache, hub: list[str], missing: str) -> None:
    cache.snapshot(A, missing)
    cache.ref(A)
    found = locate(NAME)
    assert (found.source, found.folder) == (NAME, None)


@pytest.mark.parametrize("missing", MISSING)
def test_an_interrupted_download_without_network(
    cache: Cache, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.snapshot(A, missing)
    cache.ref(A)
    refuse(r"org/name was not fetched to its end \(.* no .*\), and the hub cannot be reached")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refuse(
        r"org/name was not fetched to its end \(.*\), and HF_HUB_OFFLINE is set; give a folder or unset it"
    )


def test_a_file_on_its_way_is_fetched_where_that_is_possible(
    cache: Cache, hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = cache.snapshot(A)
    cache.ref(A)
    (cache.repo / "blobs").mkdir()
    (cache.repo / "blobs" / "1234.incomplete").touch()
    assert locate(NAME).folder is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate(NAME).folder == snapshot


def test_damage_is_no_interrupted_download(cache: Cache, hub: list[str]) -> None:
    """What lies there whole is not fetched again, so vLLM would fail."""
    snapshot = cache.snapshot(A)
    cache.ref(A)
    (snapshot / "model.safetensors").write_bytes(b"12345678 damaged")
    refuse("is not a safetensors file")
    shutil.rmtree(snapshot)
    assert locate(NAME).folder is None
