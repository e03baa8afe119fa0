"""The command line as a user meets it: exit status 2 and one line, before vLLM starts."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gb10.machine import gpu as device
from gb10.serve import curl_line

Make = Callable[..., Path]


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


@pytest.fixture
def needs_vllm() -> None:
    pytest.importorskip("vllm.version", reason="vLLM is not installed")


@pytest.mark.usefixtures("clean_environment", "needs_vllm")
class TestRefusals:
    """Each of these must come back in seconds with one line."""

    def test_no_model(self) -> None:
        assert "no model given and GB10_DEMO_MODEL is not set" in refused(gb10("serve", GB10_PROFILE="cpu"))

    def test_missing_model(self) -> None:
        assert "/nonexistent/model does not exist" in refused(
            gb10("serve", "/nonexistent/model", GB10_PROFILE="cpu")
        )

    def test_port_in_use(self, make_checkpoint: Make) -> None:
        import socket

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            text = refused(gb10("serve", str(make_checkpoint()), PORT=port, GB10_PROFILE="cpu"))
        assert f"port {port} on 127.0.0.1 is in use" in text

    def test_dead_variable(self) -> None:
        text = refused(gb10("serve", VLLM_NVFP4_GEMM_BACKEND="marlin"))
        assert "VLLM_NVFP4_GEMM_BACKEND does nothing any more; use --linear-backend" in text

    def test_no_gpu_with_the_cuda_profile(self) -> None:
        done = gb10("serve", "/m", GB10_PROFILE="cuda", CUDA_VISIBLE_DEVICES="")
        assert "no NVIDIA GPU can be seen" in refused(done)

    def test_dry_run_prints_a_command_and_keeps_the_key(self, make_checkpoint: Make) -> None:
        done = gb10("serve", str(make_checkpoint()), "--dry-run", "--api-key", "secret", GB10_PROFILE="cpu")
        assert done.returncode == 0
        assert "gb10.serve.engine --model" in done.stdout
        assert "secret" not in done.stdout

    def test_refusals_are_quick(self) -> None:
        began = time.monotonic()
        refused(gb10("serve", "/nonexistent/model", GB10_PROFILE="cpu"))
        assert time.monotonic() - began < 5


def test_curl_line_is_ready_to_paste() -> None:
    line = curl_line("http://127.0.0.1:1", "it's", key=True)
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


def test_curl_line_of_the_demo_model_completes_code() -> None:
    line = curl_line("https://127.0.0.1:1", "gb10-demo", key=False, demo=True)
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
