"""The roles of an image, and what process 1 does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ENTRY = Path(__file__).parents[3] / "nix/image/entry.py"
JSON = '{"method": "mtp", "n": [1, 2], "text": "a \\"b\\" $c"}'


@pytest.fixture
def container(entry: ModuleType, tmp_path: Path) -> Any:
    """A container that has all that it needs."""

    def make(**variables: str) -> Any:
        base = {
            "XDG_CACHE_HOME": str(tmp_path),
            "GB10_IMAGE_SERVE": "/serve",
            "GB10_IMAGE_DOCTOR": "/doctor",
            "GB10_IMAGE_SHELL": "/bash",
        }
        return entry.Container(
            base | variables, shared_memory=Path("/"), temporary=tmp_path, programs=tmp_path / "bin"
        )

    return make


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ([], ["/serve"]),
        (["serve"], ["/serve"]),
        (["serve", "org/model", "--vllm-args", JSON], ["/serve", "org/model", "--vllm-args", JSON]),
        (["--port", "1"], ["/serve", "--port", "1"]),
        (["bash", "-c", "echo 'a  b'"], ["/bash", "-c", "echo 'a  b'"]),
        (["doctor", "--json"], ["/doctor", "--json"]),
        (["download", "org/model"], [sys.executable, "-I", "-m", "gb10", "download", "org/model"]),
    ],
)
def test_a_role_is_a_command_and_arguments_stay_what_they_are(
    entry: ModuleType, container: Any, arguments: list[str], command: list[str]
) -> None:
    assert entry.command_of(container(), arguments) == command


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (["vllm"], {}, "'vllm' is no role"),
        ([""], {}, "'' is no role"),
        (["ray-worker"], {"HEAD_IP": "10.0.0.1"}, "this image has no Ray; take gb10-ray or gb10-cpu-ray"),
        (["ray-head"], {}, "this image has no Ray"),
        (["serve"], {"RAY_PORT": "tcp://10.0.0.1:80"}, "a service called ray;"),
        ([], {"GB10_PORT": "tcp://10.0.0.1:80"}, "a service called gb10;"),
        ([], {"PORT": "tcp://10.0.0.1:80"}, "enableServiceLinks"),
        ([], {"HF_TOKEN": "hf_a\n"}, "HF_TOKEN has blanks"),
        ([], {"HF_TOKEN": "hf_a b"}, "HF_TOKEN has blanks"),
        ([], {"HF_TOKEN": '"hf_a"'}, "HF_TOKEN has a quote"),
        ([], {"HF_TOKEN": "hf_a'"}, "HF_TOKEN has a quote"),
        ([], {"XDG_CACHE_HOME": "/proc"}, "the cache folder /proc cannot be written"),
    ],
)
def test_what_is_wrong_is_one_line(
    entry: ModuleType, container: Any, arguments: list[str], variables: dict[str, str], said: str
) -> None:
    with pytest.raises(entry.UserError) as caught:
        entry.command_of(container(**variables), arguments)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def with_ray(tmp_path: Path) -> None:
    """The image has Ray."""
    program = tmp_path / "bin/ray"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)


@pytest.mark.usefixtures("with_ray")
def test_nodes_of_ray(entry: ModuleType, container: Any) -> None:
    """Both are ``gb10 serve``, at HEAD_IP, with what the user says first."""
    at = container(HEAD_IP="10.0.0.1")
    executor = ["--distributed-executor-backend", "ray"]
    where = ["--master-addr", "10.0.0.1", "--master-port", "6379"]
    head = entry.command_of(at, ["ray-head", "model", "-tp", "2"])
    node = ["--nnodes", "2", "--node-rank", "0"]
    assert head == [entry.command_of(at, [])[0], "model", "-tp", "2", *node, *where, *executor]
    worker = entry.command_of(at, ["ray-worker", "model", "-tp", "2"])
    node = ["--headless", "--nnodes", "2", "--node-rank", "1"]
    assert worker == [head[0], "model", "-tp", "2", *node, *where, *executor]


@pytest.mark.usefixtures("with_ray")
def test_more_nodes_of_ray_at_another_port(entry: ModuleType, container: Any) -> None:
    third = container(HEAD_IP="10.0.0.1", NODES="4", NODE_RANK="3", RAY_PORT="7000")
    words = " ".join(entry.command_of(third, ["ray-worker"]))
    assert "--nnodes 4 --node-rank 3 " in words and "--master-port 7000 " in words


@pytest.mark.usefixtures("with_ray")
@pytest.mark.parametrize("role", ["ray-head", "ray-worker"])
def test_a_node_of_ray_needs_the_heads_address(entry: ModuleType, container: Any, role: str) -> None:
    with pytest.raises(entry.UserError, match=f"^HEAD_IP is not set; {role} needs the address"):
        entry.command_of(container(), [role, "model"])


def test_too_little_shared_memory_is_said(entry: ModuleType, tmp_path: Path) -> None:
    without = entry.Container({"XDG_CACHE_HOME": str(tmp_path)}, tmp_path / "none", tmp_path)
    with pytest.raises(entry.UserError, match="--shm-size"):
        entry.check_folders(without)


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "-h"], ["serve", "model", "--help"]])
def test_help_needs_nothing_of_the_container(entry: ModuleType, tmp_path: Path, arguments: list[str]) -> None:
    variables = {"GB10_IMAGE_SERVE": "/serve", "XDG_CACHE_HOME": str(tmp_path / "none")}
    bare = entry.Container(variables, shared_memory=tmp_path / "none", temporary=tmp_path / "none")
    assert entry.command_of(bare, arguments)[0] == "/serve"
    with pytest.raises(entry.UserError, match="cannot be written"):
        entry.command_of(bare, ["serve", "model"])


RUN = """
import ctypes, os, signal, sys
sys.path.insert(0, sys.argv[1])
import entry
# Nix's builder ignores some, and bash sets no trap for what it finds ignored.
for each in entry.PASSED_ON: signal.signal(each, signal.SIG_DFL)
# PR_SET_CHILD_SUBREAPER: orphans come here, as to process 1.
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
sys.exit(entry.run(sys.argv[3:], os.environ, float(sys.argv[2])))
"""


def started(grace: float, script: str) -> subprocess.Popen[str]:
    """A process that is to `script` what process 1 is, once the script says "ready"."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(ENTRY.parent), str(grace), "bash", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    process = started(30, f"trap 'echo got {name}; exit 7' {name}; echo ready; while :; do sleep 0.05; done")
    process.send_signal(number)
    said, _ = process.communicate(timeout=20)
    assert said == f"got {name}\n"
    assert process.returncode == 7


def test_a_signal_that_comes_before_the_command_is_passed_on_too(
    entry: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen

    def interrupted(*arguments: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return start(*arguments, **named)

    before = {number: signal.getsignal(number) for number in (*entry.PASSED_ON, signal.SIGALRM)}
    monkeypatch.setattr(entry.subprocess, "Popen", interrupted)
    try:
        status = entry.run(["sleep", "60"], os.environ, 20)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert status == 128 + signal.SIGTERM


def test_what_does_not_end_is_killed() -> None:
    process = started(0.5, "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGKILL
    assert "killed" in error
    assert time.monotonic() - begun < 10


def test_orphans_are_waited_for() -> None:
    # The inner shell ends at once and leaves a process, whose end nobody but process 1 may wait for.
    process = started(
        30, "(sleep 0.1 & echo $!) | read -r orphan; (sleep 0.2 &); echo ready; sleep 1.5; exit 3"
    )
    time.sleep(0.9)
    zombies = [
        line
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for line in Path(f"/proc/{child}/status").read_text().splitlines()
        if line.startswith("State:") and "Z" in line
    ]
    process.communicate(timeout=20)
    assert process.returncode == 3
    assert zombies == []


def test_the_end_of_a_command_is_the_end_of_the_container() -> None:
    process = started(30, "echo ready; kill -SEGV $$")
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGSEGV


def test_nothing_of_the_image_itself_is_in_the_variables(tmp_path: Path) -> None:
    shell = "/bin/bash"
    done = subprocess.run(
        [sys.executable, "-I", str(ENTRY), "bash", "-c", "env"],
        env=os.environ | {"GB10_IMAGE_SHELL": shell, "GB10_IMAGE_SERVE": "/serve", "KEPT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "KEPT=1" in done.stdout
    assert "GB10_IMAGE_" not in done.stdout
