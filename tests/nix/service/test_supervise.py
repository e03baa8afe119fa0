"""The unit's first process: what it tells systemd of a server that is well, ill, gone or stuck."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from conftest import SUPERVISOR, Manager

KEY = "a-key"


@pytest.fixture
def credentials(tmp_path: Path) -> str:
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "gb10_api-key").write_text(KEY + "\n")
    return str(folder)


def _serving(manager: Manager, credentials: str, manner: str = "ok") -> None:
    manager.start(CREDENTIALS_DIRECTORY=credentials)
    manager.until("READY=1")
    manager.until("WATCHDOG=1")
    manager.manner.write_text(manner)


def test_ready_comes_with_the_servers_own_word_and_the_watchdog_with_an_answer(
    manager: Manager, credentials: str
) -> None:
    _serving(manager, credentials)
    assert manager.fed(2) >= 2
    assert "STATUS=loading: 1 s, loading weights 40 %" in manager.lines
    ready = manager.lines.index("READY=1")
    assert re.fullmatch(r"STATUS=serves fake at http://127\.0\.0\.1:\d+/v1", manager.lines[ready + 1])
    assert "WATCHDOG=1" not in manager.lines[:ready]


def test_a_signal_is_passed_on_and_the_status_is_the_servers(manager: Manager, credentials: str) -> None:
    _serving(manager, credentials)
    assert manager.process is not None
    manager.process.send_signal(signal.SIGTERM)
    assert manager.ended() == 0
    assert "STOPPING=1" in manager.lines
    assert manager.said.endswith("stopped\n")


def test_the_key_goes_to_the_server_alone(manager: Manager, credentials: str) -> None:
    manager.start("org/model", '{"a": "b  c"}', CREDENTIALS_DIRECTORY=credentials)
    manager.until("READY=1")
    said = dict(line.split(" ", 1) for line in manager.said.splitlines()[:2])
    assert json.loads(said["arguments"]) == ["org/model", '{"a": "b  c"}']
    names = json.loads(said["variables"])
    assert "VLLM_API_KEY" in names
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "CREDENTIALS_DIRECTORY"} & set(names)
    assert manager.process is not None
    shown = Path(f"/proc/{manager.process.pid}/environ").read_text()
    assert KEY not in shown and KEY not in manager.said and not any(KEY in line for line in manager.lines)


@pytest.mark.parametrize("manner", ["hang", "500"])
def test_a_server_without_an_answer_is_not_fed(manager: Manager, credentials: str, manner: str) -> None:
    _serving(manager, credentials, manner)
    manager.fed(1)  # an answer that was on its way
    assert manager.fed(4) == 0
    manager.manner.write_text("ok")
    manager.wait_for(lambda: manager.fed(0.3) > 0)


def test_a_stopped_server_is_not_fed(manager: Manager, credentials: str) -> None:
    _serving(manager, credentials)
    assert manager.process is not None
    pid = manager.process.pid
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(child), signal.SIGSTOP)
    manager.fed(1)
    assert manager.fed(4) == 0
    os.kill(int(child), signal.SIGCONT)
    manager.wait_for(lambda: manager.fed(0.3) > 0)


@pytest.mark.parametrize(
    ("manner", "said"),
    [
        ("busy", "others got 7 tokens while our question waits"),
        ("asleep", "the engine rests (is_sleeping)"),
        ("shed", "it takes no new requests while memory is short"),
    ],
)
def test_a_question_that_waits_is_no_sign_of_death(
    manager: Manager, credentials: str, manner: str, said: str
) -> None:
    _serving(manager, credentials, manner)
    manager.wait_for(lambda: f"gb10: watchdog: {said}\n" in manager.said)
    assert manager.fed(3) >= 1


@pytest.mark.parametrize(
    ("manner", "said"),
    [("nan", "the model's answer is not a number"), ("red", "HTTP 503 for /health")],
)
def test_a_model_that_answers_noise_is_started_anew_at_once(
    manager: Manager, credentials: str, manner: str, said: str
) -> None:
    _serving(manager, credentials, manner)
    assert manager.ended() == 1
    assert said in manager.said and "STOPPING=1" in manager.lines
    assert manager.said.endswith("stopped\n")


def test_a_key_that_is_not_ours_is_no_reason_to_start_again(manager: Manager, credentials: str) -> None:
    _serving(manager, credentials, "key")
    assert manager.ended() == 2
    assert "another API key" in manager.said


def test_a_killed_server_ends_the_unit(manager: Manager, credentials: str) -> None:
    _serving(manager, credentials, "die")
    assert manager.ended() == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("manner", "status"),
    [
        ("exit 2: --port 'x' is not a port", 2),
        ("exit 1: vLLM ended", 1),
        ("exit 75: ended before memory ran out", 75),
        # Memory that others have now may be free later.
        ("exit 2: not enough memory: m needs about 9 GiB", 75),
    ],
)
def test_how_a_start_failed(manager: Manager, manner: str, status: int) -> None:
    manager.manner.write_text(manner)
    manager.start()
    assert manager.ended() == status
    assert "READY=1" not in manager.lines
    words = manner.partition(": ")[2]
    assert f"STATUS=error: {words}" in manager.lines
    assert f"gb10: error: {words}" in manager.said.splitlines()


def test_the_budgets_refusal_begins_as_the_supervisor_expects() -> None:
    """A change of these words would keep a service down that waits for memory."""
    budget = (Path(__file__).parents[3] / "python/src/gb10/serve/budget.py").read_text()
    supervise = (SUPERVISOR / "supervise.py").read_text()
    assert '_SHORT = "gb10: error: not enough memory: "' in supervise
    assert budget.count('f"not enough memory: ') == 2


def test_without_a_watchdog_nothing_is_asked(tmp_path: Path, credentials: str) -> None:
    manager = Manager(tmp_path, None)
    try:
        manager.start(CREDENTIALS_DIRECTORY=credentials)
        manager.until("READY=1")
        assert manager.fed(2) == 0
    finally:
        manager.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [("a b", "is not one word"), ("", "is not one word"), ("schlüssel", "cannot be read")],
)
def test_a_key_that_is_none(manager: Manager, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "gb10_api-key").write_text(content)
    manager.start(CREDENTIALS_DIRECTORY=str(tmp_path))
    assert manager.ended() == 2
    assert manager.said.startswith("gb10: error: the credential api-key") and said in manager.said
    assert manager.said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (("--api-key", "x"), {}, "--api-key is no option of the service"),
        (("--api_key=x",), {}, "--api-key is no option of the service"),
        ((), {"VLLM_EXTRA_ARGS": "--api-key x"}, "--api-key is no option of the service"),
        ((), {"VLLM_API_KEY": "x"}, "VLLM_API_KEY is among the service's variables"),
        ((), {"HF_TOKEN": "x"}, "HF_TOKEN is among the service's variables"),
    ],
)
def test_no_secret_elsewhere(
    manager: Manager, arguments: tuple[str, ...], variables: dict[str, str], said: str
) -> None:
    manager.start(*arguments, options=(), bare=False, **variables)
    assert manager.ended() == 2
    assert manager.said.startswith(f"gb10: error: {said}") and manager.said.count("\n") == 1


def test_no_program(manager: Manager) -> None:
    manager.start(bare=True)
    assert manager.ended() == 2
    assert "no program to start" in manager.said


def test_a_gpu_that_is_not_there_is_waited_for_by_systemd(manager: Manager) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA driver")
    manager.start(options=("--gpu",))
    assert manager.ended() == 75
    assert manager.said == (
        "gb10: /dev/nvidiactl is not there yet: the driver has not started; started again later\n"
    )


def test_the_end_comes_soon(manager: Manager, credentials: str) -> None:
    _serving(manager, credentials, "hang")
    manager.fed(1)
    assert manager.process is not None
    began = time.monotonic()
    manager.process.send_signal(signal.SIGTERM)
    assert manager.ended() == 0
    assert time.monotonic() - began < 8
