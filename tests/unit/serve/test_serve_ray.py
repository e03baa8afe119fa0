"""Ray's part on a node: what is started, when the node is up, and that nothing of it is left."""

from __future__ import annotations

import os
import socket
import time
from contextlib import closing
from pathlib import Path

import pytest

from gb10.errors import UserError
from gb10.serve import ray

# It stands for Ray: listens at --port, writes its words and variables down, and ends when it is told to.
STAND_IN = """
import json, os, pathlib, socket, sys, time
words = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[2:])
told = pathlib.Path(os.environ["STAND_IN"])
(told / "told").write_text(json.dumps([sys.argv[1], words, dict(os.environ)]))
if "head" in words and not (told / "ends").exists():
    server = socket.create_server(("127.0.0.1", int(words["port"])))
while not (told / "ends").exists():
    time.sleep(0.02)
sys.exit(7)
"""


@pytest.fixture
def port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-in writes; it is what ``python -m ray.scripts.scripts`` finds."""
    scripts = tmp_path / "path/ray/scripts"
    scripts.mkdir(parents=True)
    for folder in (scripts, scripts.parent):
        (folder / "__init__.py").touch()
    (scripts / "scripts.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'path'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    # Whatever is set in the block goes with the test.
    for name in (ray.ADDRESS, *ray.VARIABLES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


def start(port: int, *, is_head: bool = True) -> ray.Start:
    return ray.Start(is_head, "127.0.0.1", port, "127.0.0.1", 1, cpu=True)


def test_the_heads_words() -> None:
    words = ray.Start(True, "10.0.0.1", 29501, "10.0.0.1", 2, cpu=False).words(Path("/tmp/x"))
    said = set(words[words.index("start") + 1 :])
    assert {"--head", "--block", "--port=29501", "--node-ip-address=10.0.0.1", "--num-gpus=2"} <= said
    assert {"--include-dashboard=false", "--disable-usage-stats", "--temp-dir=/tmp/x"} <= said
    assert not any(word.startswith("--address") for word in said)


def test_another_nodes_words() -> None:
    words = ray.Start(False, "fd00::1", 29501, "fd00::2", 1, cpu=True).words(Path("/tmp/x"))
    assert {"--address=[fd00::1]:29501", "--num-gpus=0", '--resources={"vllm_cpu": 1}'} <= set(words)
    assert "--head" not in words


def test_nothing_without_ray() -> None:
    with ray.running(None) as node:
        assert node is None


def test_the_head_is_up_when_it_listens_and_ends_with_the_block(told: Path, port: int) -> None:
    with ray.running(start(port)) as node:
        assert node is not None
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        assert os.environ[ray.ADDRESS] == f"127.0.0.1:{port}"
        text = (told / "told").read_text()
        assert '"RAY_USAGE_STATS_ENABLED": "0"' in text and '"RAY_memory_monitor_refresh_ms": "0"' in text
        folder = Path(text.partition('"temp-dir": "')[2].partition('"')[0])
        assert folder.is_dir()
    assert node.poll() is not None
    assert not folder.exists()


def test_a_head_that_does_not_come_up(told: Path, port: int) -> None:
    (told / "ends").touch()
    with (
        pytest.raises(RuntimeError, match=r"^Ray on this node ended \(exit status 7\)$"),
        ray.running(start(port)),
    ):
        pytest.fail("it is not up")


def test_a_node_waits_for_the_head_and_stays(told: Path, port: int) -> None:
    """Its end is an error."""
    with closing(socket.create_server(("127.0.0.1", port))), ray.running(start(port, is_head=False)) as node:
        assert node is not None and node.poll() is None
        until = time.monotonic() + 30
        while not (told / "told").exists() and time.monotonic() < until:
            time.sleep(0.02)
        (told / "ends").touch()
        with pytest.raises(RuntimeError, match=r"^Ray on this node ended \(exit status 7\)$"):
            ray.stay(node)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"this build has no Ray"):
        ray.check()
    with pytest.raises(UserError, match=r"RAY_ADDRESS=HOST:PORT of a Ray cluster that runs$"):
        ray.check_address({"RAY_ADDRESS": ""})
    ray.check_address({"RAY_ADDRESS": "auto"})
