"""Headers of a hub's model: how many bytes are asked for, what is kept, what is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import COMMIT, Hub
from huggingface_hub import constants
from published import Published, header, size, write

from gb10.audit import remote
from gb10.checkpoint.folder import inspect
from gb10.download import transfer
from gb10.errors import UserError

NAME = "org/name"
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 8192,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 100_000,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
LAYER = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (8192, 4096),
    "mlp.up_proj": (8192, 4096),
    "mlp.down_proj": (4096, 8192),
    "input_layernorm": (4096,),
    "post_attention_layernorm": (4096,),
}
TENSORS = (
    ("model.embed_tokens.weight", "BF16", (100_000, 4096)),
    *((f"model.layers.{n}.{name}.weight", "BF16", shape) for n in range(2) for name, shape in LAYER.items()),
    ("model.norm.weight", "BF16", (4096,)),
    ("lm_head.weight", "BF16", (100_000, 4096)),
)
PUBLISHED = Published(CONFIG, TENSORS)
PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


def header_bytes(folder: Path) -> int:
    """The bytes of all headers in a folder."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            total += 8 + int.from_bytes(opened.read(8), "little")
    return total


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the model, which this process is told to ask."""
    made = Hub(write(tmp_path / "origin", PUBLISHED))
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", made.endpoint)
    template = f"{made.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(transfer, "PAUSE", 0.01)
    yield made
    made.close()


def refused(cache: Path, revision: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        remote.fetch_headers(NAME, revision, cache)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_headers_are_asked_for_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    notes: list[str] = []
    folder = remote.fetch_headers(NAME, None, tmp_path / "cache", notes.append)
    assert folder == tmp_path / "cache/org--name" / COMMIT
    assert hub.sent == header_bytes(hub.folder)
    assert hub.sent * 10_000 < sum(map(size, TENSORS))
    assert len(hub.asked) == 6
    assert len(notes) == 3
    for file in hub.folder.glob("*.safetensors"):
        kept = folder / file.name
        assert kept.stat().st_size == file.stat().st_size
        assert kept.stat().st_blocks * 512 < 1 << 20
        length = header_bytes_of(file)
        assert kept.open("rb").read(length) == file.open("rb").read(length)
    found = inspect(folder, NAME, tokenizer=False)
    assert [(t.name, t.dtype, t.shape) for t in found.tensors] == list(TENSORS)
    # Once more: all is there.
    hub.asked.clear()
    assert remote.fetch_headers(NAME, COMMIT, tmp_path / "cache") == folder
    assert hub.asked == []


def header_bytes_of(file: Path) -> int:
    with file.open("rb") as opened:
        return 8 + int.from_bytes(opened.read(8), "little")


def test_a_connection_that_breaks_is_taken_up_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.cut = [8, 3, 8, 100, 1, 250]
    folder = remote.fetch_headers(NAME, None, tmp_path / "cache")
    assert inspect(folder, NAME, tokenizer=False).tensors
    # Not a byte came twice.
    assert hub.sent == header_bytes(hub.folder)
    assert any(not wanted.startswith(("bytes=0-", "bytes=8-")) for _, wanted in hub.asked)


def test_a_broken_run_goes_on(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_THREADS", 1)
    monkeypatch.setattr(transfer, "TRIES", 0)
    # The first file comes; the headers of the others break off.
    hub.cut = [8, 1 << 20, 8, 10, 8, 10]
    assert "broke off" in refused(tmp_path / "cache")
    place = tmp_path / "cache/org--name" / COMMIT
    kept = sorted(path.name for path in place.iterdir())
    assert kept == ["config.json", "model-00001-of-00003.safetensors", "model.safetensors.index.json"]
    hub.asked.clear()
    monkeypatch.setattr(transfer, "TRIES", 5)
    hub.cut = []
    remote.fetch_headers(NAME, None, tmp_path / "cache")
    assert {name for name, _ in hub.asked} == {
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    }
    assert [path.name for path in place.parent.iterdir()] == [COMMIT]


def test_what_is_not_there_or_not_for_us(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert refused(cache, "nosuch") == "model org/name has no revision nosuch; give a branch, tag or commit"
    hub.status, hub.code = 401, "RepoNotFound"
    assert "or it is private; check the name, or set HF_TOKEN" in refused(cache)
    hub.status, hub.code = 403, "GatedRepo"
    assert f"is gated: ask for access at {hub.endpoint}/org/name, then set HF_TOKEN" in refused(cache)
    hub.status, hub.code = 418, ""
    assert "answered 418; check HF_ENDPOINT" in refused(cache)
    assert not cache.exists()


def test_a_hub_without_ranges_is_not_read_to_the_end(hub: Hub, tmp_path: Path) -> None:
    hub.ranges = False
    assert "gives whole files only" in refused(tmp_path / "cache")
    assert len(hub.asked) <= 3


def test_models_without_headers(hub: Hub, tmp_path: Path) -> None:
    for file in hub.folder.glob("*.safetensors*"):
        file.unlink()
    (hub.folder / "pytorch_model.bin").write_bytes(b"x")
    assert "has no safetensors files (it has pytorch_model.bin)" in refused(tmp_path / "cache")
    (hub.folder / "config.json").unlink()
    assert "has no config.json" in refused(tmp_path / "cache")


@pytest.mark.parametrize("start", [b"\xff" * 8, (50).to_bytes(8, "little") + b"{torn" + b" " * 200])
def test_torn_headers_are_not_kept(hub: Hub, tmp_path: Path, start: bytes) -> None:
    torn = hub.folder / "model-00002-of-00003.safetensors"
    torn.write_bytes(start)
    assert torn.name in refused(tmp_path / "cache")
    assert not (tmp_path / "cache/org--name" / COMMIT / torn.name).exists()
    # Mended on the hub, it is fetched.
    each = -(-len(TENSORS) // 3)
    first, length = header(list(TENSORS[each : 2 * each]))
    with torn.open("wb") as out:
        out.write(first)
        out.truncate(length)
    remote.fetch_headers(NAME, None, tmp_path / "cache")


def gb10(hub: Hub, tmp_path: Path, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if name not in PROXIES and name[:3] != "HF_"}
    return subprocess.run(
        [sys.executable, "-m", "gb10", "audit", *words],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={
            **kept,
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "XDG_CACHE_HOME": str(tmp_path / "xdg"),
            **more,
        },
    )


def test_the_command_asks_the_hub_that_is_named(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("vllm.version", reason="vLLM is not installed")
    done = gb10(hub, tmp_path, NAME, "--json", "--revision", "main", "--context", "0")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    read = sum(size(spec) for spec in TENSORS if not spec[0].startswith("model.embed_tokens")) + 8192
    assert (found["model"], found["weights_read"], found["read"]) == (NAME, read, read)
    assert found["stored"] == sum(map(size, TENSORS))
    assert hub.sent == header_bytes(hub.folder)
    assert "bytes of its header" in done.stderr


@pytest.mark.parametrize("more", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}], ids=str)
def test_headers_of_earlier_do_without_the_hub(hub: Hub, tmp_path: Path, more: dict[str, str]) -> None:
    pytest.importorskip("vllm.version", reason="vLLM is not installed")
    first = gb10(hub, tmp_path, NAME)
    assert first.returncode == 0, first.stderr
    assert not (tmp_path / "hf").exists() or not list((tmp_path / "hf").rglob("config.json"))
    again = gb10(hub, tmp_path, NAME, **more)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert f"these are the headers of {COMMIT[:12]}, fetched earlier" in again.stderr
    named = gb10(hub, tmp_path, NAME, "--revision", "b" * 40, **more)
    assert (named.returncode, named.stderr.count("\n")) == (2, 1)


def test_a_damaged_header_is_fetched_anew(hub: Hub, tmp_path: Path) -> None:
    folder = remote.fetch_headers(NAME, None, tmp_path / "cache")
    kept = folder / "model-00002-of-00003.safetensors"
    whole = kept.stat().st_size
    with kept.open("r+b") as file:
        file.truncate(1000)
    hub.asked.clear()
    remote.fetch_headers(NAME, None, tmp_path / "cache")
    assert {name for name, _ in hub.asked} == {kept.name}
    assert kept.stat().st_size == whole


@pytest.mark.parametrize("wrong", ["cut", "damaged"])
def test_a_config_that_breaks_off_or_comes_damaged(
    hub: Hub, tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wrong == "damaged":
        hub.damaged = ["config.json"]
    else:
        monkeypatch.setattr(hub, "_bytes", lambda *_: b"{")
    said = refused(tmp_path / "cache")
    assert "config.json" in said
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_without_network_it_is_one_line(hub: Hub, tmp_path: Path) -> None:
    for more in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        done = gb10(hub, tmp_path, NAME, **more)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith(
            "gb10: error: model org/name is neither a folder nor in the Hugging Face"
        )
