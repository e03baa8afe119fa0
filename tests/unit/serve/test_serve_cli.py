"""The command line as a user meets it: exit status 2 and one line, before vLLM starts."""

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gb10.machine import gpu as device
from gb10.serve.run import curl_line

Make = Callable[..., Path]

DRY = ("--dry-run", "--load-format", "dummy")
"""The checkpoints of these tests hold no weights that vLLM could load."""


def gb10(*argv: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gb10", *argv],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        timeout=60,
        check=False,
    )


def refused(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 2, done
    assert done.stderr.startswith("gb10: error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def answer(hub: socket.socket) -> None:
    """Be a hub: answer every request with "not found", until ``hub`` is closed."""
    while hub.fileno() >= 0:
        with contextlib.suppress(OSError), hub.accept()[0] as asked:
            asked.recv(65536)
            asked.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


@pytest.fixture
def needs_vllm() -> None:
    pytest.importorskip("vllm.version", reason="vLLM is not installed")


@pytest.mark.usefixtures("clean_environment", "needs_vllm")
class TestRefusals:
    """Each of these must come back in seconds with one line."""

    def test_no_model(self) -> None:
        assert "no model given and GB10_DEMO_MODEL is not set" in refused(gb10("serve", GB10_PROFILE="cpu"))

    @pytest.mark.parametrize("name", ["MODEL", "GB10_DEMO_MODEL"])
    def test_a_missing_model_of_a_variable_is_named(self, name: str) -> None:
        text = refused(gb10("serve", GB10_PROFILE="cpu", **{name: "/nonexistent/model"}))
        assert text.startswith(f"gb10: error: {name}: model /nonexistent/model does not exist")

    def test_what_vllm_refuses_names_the_variable(self, make_checkpoint: Make) -> None:
        """vLLM's words name its arguments only."""
        folder = str(make_checkpoint())
        text = refused(gb10("serve", folder, GB10_PROFILE="cpu", MAX_MODEL_LEN="999999"))
        assert "--max-model-len 999999 is more than the 2048 tokens of the model; give at most 2048" in text
        assert text.endswith(" (set by variables: MAX_MODEL_LEN)\n")

    def test_empty_variables_count_as_unset(self, make_checkpoint: Make) -> None:
        names = [
            "GB10_CPU_NVFP4_MODE",
            "HF_HOME",
            "OMP_NUM_THREADS",
            "VLLM_CPU_KVCACHE_SPACE",
            "HOST",
            "PORT",
        ]
        names += [
            "VLLM_LOGGING_LEVEL",
            "VLLM_CONFIGURE_LOGGING",
            "VLLM_WORKER_MULTIPROC_METHOD",
            "VLLM_USE_V1",
        ]
        empty = dict.fromkeys(names, "")
        done = gb10("serve", str(make_checkpoint()), *DRY, GB10_PROFILE="cpu", **empty)
        assert done.returncode == 0, done
        table = [line.split() for line in done.stdout.splitlines()]
        assert [row[-1] for row in table if row[:1] == ["OMP_NUM_THREADS"]] == ["machine"]
        assert ["--host", "127.0.0.1", "default"] in table

    def test_a_plugin_that_vllm_does_not_see(self, make_checkpoint: Make) -> None:
        """vLLM itself would say that NVFP4 is not known, in a line that is cut."""
        parts = [part for part in sys.path if not list(Path(part).glob("gb10-*.dist-info"))]
        text = refused(gb10("serve", str(make_checkpoint()), PYTHONPATH=os.pathsep.join(parts)))
        assert "vLLM does not see gb10's plug-in: " in text

    def test_missing_model(self) -> None:
        assert "/nonexistent/model does not exist" in refused(
            gb10("serve", "/nonexistent/model", GB10_PROFILE="cpu")
        )

    def test_a_pipe_in_a_checkpoint(self, make_checkpoint: Make) -> None:
        folder = make_checkpoint()
        os.mkfifo(folder / "chat_template.jinja")
        text = refused(gb10("serve", str(folder), GB10_PROFILE="cpu"))
        assert f"{folder}/chat_template.jinja is a named pipe (FIFO), not a file" in text

    def test_port_in_use(self, make_checkpoint: Make) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            text = refused(gb10("serve", str(make_checkpoint()), PORT=port, GB10_PROFILE="cpu"))
        assert f"port {port} on 127.0.0.1 is in use" in text

    def test_dead_variable(self) -> None:
        text = refused(gb10("serve", VLLM_NVFP4_GEMM_BACKEND="marlin"))
        assert "VLLM_NVFP4_GEMM_BACKEND does nothing any more; use --linear-backend" in text

    def test_dry_run_prints_a_command_and_keeps_the_key(self, make_checkpoint: Make) -> None:
        done = gb10("serve", str(make_checkpoint()), *DRY, "--api-key", "secret", GB10_PROFILE="cpu")
        assert done.returncode == 0
        *table, blank, command = done.stdout.splitlines()
        assert "-P -m gb10.serve.engine --model" in command
        assert "VLLM_API_KEY=..." in command
        assert blank == ""
        assert table[0].split() == ["setting", "value", "origin"]
        assert ["--max-model-len", "2048", "machine"] in [line.split() for line in table]
        assert ["GB10_PROFILE", "cpu", "variable"] in [line.split() for line in table]
        assert "secret" not in done.stdout

    @pytest.mark.parametrize(("revision", "offline"), [("a" * 40, True), ("main", True), ("b" * 40, False)])
    def test_only_the_cached_revision_needs_no_hub(
        self, make_checkpoint: Make, tmp_path: Path, revision: str, offline: bool
    ) -> None:
        repo = tmp_path / "hub" / "models--org--name"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text("a" * 40)
        (repo / "snapshots").mkdir()
        make_checkpoint().rename(repo / "snapshots" / ("a" * 40))
        with socket.socket() as hub:
            # It is enough that somebody answers.
            hub.bind(("127.0.0.1", 0))
            hub.listen()
            threading.Thread(target=answer, args=(hub,), daemon=True).start()
            done = gb10(
                *("serve", "org/name", *DRY, "--revision", revision),
                GB10_PROFILE="cpu",
                HF_HUB_CACHE=str(tmp_path / "hub"),
                HF_ENDPOINT=f"http://127.0.0.1:{hub.getsockname()[1]}",
                NO_PROXY="127.0.0.1",
            )
        command = shlex.split(done.stdout.splitlines()[-1])
        assert ("HF_HUB_OFFLINE=1" in command) is offline
        model = command[command.index("--model") + 1]
        assert model == (
            str(repo / "snapshots" / revision.replace("main", "a" * 40)) if offline else "org/name"
        )
        assert command[command.index("--revision") + 1] == revision
        assert command[command.index("--served-model-name") + 1] == "org/name"

    def test_what_only_vllm_knows_is_refused_before_it_serves(self, make_checkpoint: Make) -> None:
        folder = str(make_checkpoint())
        error = refused(gb10("serve", folder, "--max-num-seq", "3", "--no-such=1", GB10_PROFILE="cpu"))
        assert "neither gb10 nor vLLM knows --no-such=1" in error

    def test_a_model_in_a_config_file(self, make_checkpoint: Make, tmp_path: Path) -> None:
        file = tmp_path / "c.yaml"
        file.write_text(f"model: {make_checkpoint()}\nmax-num-seqs: 3\n")
        done = gb10("serve", "--config", str(file), *DRY, GB10_PROFILE="cpu")
        assert done.returncode == 0, done.stderr
        rows = [line.split() for line in done.stdout.splitlines()]
        assert ["--max-num-seqs", "3", "config"] in rows
        assert "OMP_NUM_THREADS=" in done.stdout.splitlines()[-1]

    @pytest.mark.parametrize(
        ("argv", "variables", "source"),
        [
            (["--api-key", "k\n"], {}, "--api-key"),
            (["--api-key", "two words"], {}, "--api-key"),
            (["--api-key", ""], {}, "--api-key"),
            (["--api-key", "good", "schl\u00fcssel"], {}, "--api-key"),
            ([], {"VLLM_API_KEY": "k\r"}, "VLLM_API_KEY"),
            ([], {"VLLM_EXTRA_ARGS": "--api-key 'a b'"}, "--api-key (in VLLM_EXTRA_ARGS)"),
        ],
    )
    def test_a_key_that_nobody_could_send(
        self, argv: list[str], variables: dict[str, str], source: str
    ) -> None:
        error = refused(gb10("serve", "/m", *argv, GB10_PROFILE="cpu", **variables))
        assert error.startswith(f"gb10: error: {source} is not a key that a client can send")

    def test_refusals_are_quick(self) -> None:
        began = time.monotonic()
        refused(gb10("serve", "/nonexistent/model", GB10_PROFILE="cpu"))
        assert time.monotonic() - began < 5


def test_curl_line_is_ready_to_paste() -> None:
    line = curl_line("http://127.0.0.1:1", "it's", "$VLLM_API_KEY")
    done = subprocess.run(
        ["bash", "-c", f"curl() {{ printf '%s\\n' \"$@\"; }}; VLLM_API_KEY=k; {line}"],
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.splitlines()
    assert words[1] == "http://127.0.0.1:1/v1/chat/completions"
    assert "Authorization: Bearer k" in words
    assert '"model": "it\'s"' in words[-1]


def test_curl_line_without_a_chat_template_completes_a_text() -> None:
    words = shlex.split(curl_line("http://127.0.0.1:1", "m", None, chat=False))
    assert words[2] == "http://127.0.0.1:1/v1/completions"
    assert json.loads(words[words.index("-d") + 1])["prompt"]


def test_curl_line_of_the_demo_model_completes_code() -> None:
    line = curl_line("https://127.0.0.1:1", "gb10-demo", None, demo=True)
    words = shlex.split(line)
    assert words[:3] == ["curl", "-s", "https://127.0.0.1:1/v1/completions"]
    assert "-k" in words
    request = json.loads(words[words.index("-d") + 1])
    assert request["prompt"].startswith("def connect(host, port, timeout=None):\n")
    assert request["prompt"].endswith(" host:")
    assert (request["model"], request["temperature"]) == ("gb10-demo", 0)


def test_nvidia_smi_output() -> None:
    text = "NVIDIA GB10, 12.1, [N/A]\nNVIDIA H200, 9.0, 143771\nnonsense\n\n"
    gb, h200 = device.parse_nvidia_smi(text)
    assert (gb.capability, gb.memory, gb.unified) == ((12, 1), 0, True)
    assert (h200.name, h200.capability, h200.memory >> 20, h200.unified) == (
        "NVIDIA H200",
        (9, 0),
        143771,
        False,
    )


@pytest.mark.parametrize("value", ["", "-1"])
def test_hidden_gpus_are_not_there(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert device.detect_gpus() == []
