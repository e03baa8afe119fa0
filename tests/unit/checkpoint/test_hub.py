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
from huggingface_hub import constants

from gb10.checkpoint.hub import locate
from gb10.errors import UserError

Make = Callable[..., Path]
NAME = "org/name"
A, B, C = "a" * 40, "b" * 40, "c" * 40
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
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    look_at(monkeypatch, "http://127.0.0.1:9")
    return Cache(tmp_path / "hub", make_checkpoint)


def look_at(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


class Hub:
    """A hub with at most a config.json. ``asked`` are the paths it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.config = b""
        hub = self

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(self.path)
                found = hub.config if self.path.endswith("/config.json") else b""
                self.send_response(200 if found else 404)
                self.send_header("Content-Length", str(len(found)))
                self.send_header("ETag", '"0123"')
                self.send_header("X-Repo-Commit", C)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(found)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, cache: Cache) -> Iterator[Hub]:
    """A hub that answers."""
    made = Hub()
    look_at(monkeypatch, f"http://127.0.0.1:{made.server.server_port}")
    yield made
    made.server.shutdown()
    made.server.server_close()


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


def test_what_is_not_cached_is_left_to_vllm(hub: Hub) -> None:
    found = locate(NAME)
    assert (found.source, found.label, found.folder, found.config) == (NAME, NAME, None, {})
    assert hub.asked


def test_the_config_of_what_is_not_cached_is_known(hub: Hub) -> None:
    hub.config = b'{"architectures": ["X"], "max_position_embeddings": 77}'
    found = locate(NAME, revision="v2")
    assert (found.source, found.folder, found.max_tokens) == (NAME, None, 77)
    assert "/org/name/resolve/v2/config.json" in hub.asked


def test_a_look_at_the_hub_leaves_nothing_in_the_cache(cache: Cache, hub: Hub) -> None:
    """A snapshot with config.json alone would be a model fetched in part; a ref would hide others."""
    hub.config = b'{"architectures": ["X"]}'
    assert locate(NAME).config
    assert not cache.repo.exists()


@pytest.mark.parametrize("config", [b"{torn", b"[1]", b"\xff\xfe"])
def test_a_config_at_the_hub_that_is_none(hub: Hub, config: bytes) -> None:
    hub.config = config
    assert locate(NAME).config == {}


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


def test_another_revision_is_left_to_vllm(cache: Cache, hub: Hub) -> None:
    cache.snapshot(A)
    cache.ref(A)
    assert locate(NAME, revision=B).folder is None


MISSING = ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("missing", MISSING)
def test_an_interrupted_download_goes_on(cache: Cache, hub: Hub, missing: str) -> None:
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
    cache: Cache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = cache.snapshot(A)
    cache.ref(A)
    (cache.repo / "blobs").mkdir()
    (cache.repo / "blobs" / "1234.abcd.incomplete").touch()
    assert locate(NAME).folder is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate(NAME).folder == snapshot
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (cache.repo / "blobs" / "1234").touch()
    assert locate(NAME).folder == snapshot


def test_damage_is_no_interrupted_download(cache: Cache, hub: Hub) -> None:
    """What lies there whole is not fetched again, so vLLM would fail."""
    snapshot = cache.snapshot(A)
    cache.ref(A)
    (snapshot / "model.safetensors").write_bytes(b"12345678 damaged")
    refuse("is not a safetensors file")
    shutil.rmtree(snapshot)
    assert locate(NAME).folder is None
