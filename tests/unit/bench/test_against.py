"""Two servers in turns: started, measured, ended; and what goes wrong with them."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import result

from gb10 import cli
from gb10.bench import against, load, results
from gb10.bench.results import Result
from gb10.bench.words import told

STAND_IN = Path(__file__).parent / "stand_in.py"
QUICK = ["--tokens", "16", "--repeat", "3", "--long", "0", "--texts", "prose", "--concurrency", "2"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


def command(port: int, gap: float) -> list[str]:
    # The shell keeps the server as its child, and --port is what the command is asked for.
    program = shlex.join([sys.executable, str(STAND_IN), str(port), str(gap)])
    return ["sh", "-c", f"{program}; exit 3", "name", "--port", str(port)]


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_two_servers_in_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow, quick = free_port(), free_port()
    words = [
        "--out",
        str(tmp_path / "out"),
        "--logs",
        str(tmp_path / "logs"),
        "--html",
        str(tmp_path / "both.html"),
    ]
    other = ["--against", shlex.join(command(slow, 0.06))]
    assert cli.main(["bench", "run", *other, *QUICK, *words, "--", *command(quick, 0.01)]) == 0
    printed = capsys.readouterr()
    assert not listens(slow) and not listens(quick)
    began = [line[:11] for line in printed.err.splitlines() if line.startswith("turn ")]
    assert began == ["turn 1 of A", "turn 1 of B", "turn 2 of A", "turn 2 of B"]
    rows = [line for line in printed.out.splitlines() if "decode, tok/s" in line]
    assert len(rows) == 1 and rows[0].endswith("B is faster")
    for name in ("a", "b"):
        found = results.load(tmp_path / "out" / f"{name}.json")
        assert [turn["turn"] for turn in found.turns] == [1, 2]
        assert [len(point.repeats) for point in found.points] == [6, 6]
    page = (tmp_path / "both.html").read_text()
    assert page.count("<svg") == 4 and "<td>B is faster</td>" in page
    logs = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert logs == ["A-1.log", "A-2.log", "B-1.log", "B-2.log"]
    assert "a line of the stand-in's log" in (tmp_path / "logs" / "B-2.log").read_text()


@pytest.mark.parametrize(
    ("other", "ours", "words"),
    [
        (
            "sh -c 'echo no memory >&2; exit 7'",
            "true",
            "A's server ended with status 7 before it answered: no mem",
        ),
        (
            "sleep 60",
            "true",
            "A's server does not answer at http://127.0.0.1:8000 after 1 s: it wrote nothing",
        ),
        ("no-such-program serve", "true", "A's command 'no-such-program' is no program here"),
        ("sh 'open", "true", "cannot be read: No closing quotation"),
        ("true", "", "B has no command"),
        ("true --port many", "true", "A's --port 'many' is none between 1 and 65535"),
        ("true", "true --port=70000", "B's --port '70000' is none"),
    ],
)
def test_what_cannot_be_started_is_one_line(
    other: str, ours: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if listens(against.PORT):
        pytest.skip("something else listens on port 8000")
    out = tmp_path / "out"
    given = ["--against", other, *QUICK, "--start-limit", "1", "--out", str(out)]
    assert cli.main(["bench", "run", *given, "--", *shlex.split(ours)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert words in lines[-1] and lines[-1].startswith("gb10: error: ")
    assert all(line.startswith("turn ") for line in lines[:-1])
    assert not out.exists()


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        given = ["--against", f"true --port {port}", *QUICK]
        assert cli.main(["bench", "run", *given, "--", "true"]) == 2
    assert f"port {port} is taken before A starts" in capsys.readouterr().err


def _hear() -> None:
    """Where the tests run in the background or under nohup, these are ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@contextmanager
def measuring(port: int, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`bench run` with these words, whose first server, at ``port``, is being measured."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gb10", "bench", "run", *words, *QUICK, "--", "true"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("measuring"):
                break
        assert listens(port)
        yield process
    finally:
        process.kill()
        process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_server_too(number: signal.Signals, tmp_path: Path) -> None:
    port = free_port()
    given = ["--against", shlex.join(command(port, 0.2)), "--out", str(tmp_path / "out")]
    with measuring(port, *given) as process:
        process.send_signal(number)
        assert process.wait(timeout=30) == 130
    end = time.monotonic() + 10
    while listens(port) and time.monotonic() < end:
        time.sleep(0.1)
    assert not listens(port)
    assert not (tmp_path / "out").exists()


def test_a_second_interrupt_leaves_no_server(tmp_path: Path) -> None:
    """A server that ignores SIGTERM is waited for; the user does not wait: SIGKILL, and all of it ends."""
    port = free_port()
    deaf = shlex.join(["sh", "-c", f"trap '' TERM; {shlex.join(command(port, 0.2))}; true"])
    with measuring(port, "--against", f"{deaf} --port {port}") as process:
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        time.sleep(1.5)
        assert process.poll() is None and listens(port)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130 and time.monotonic() - began < 30
        assert process.stderr is not None
        assert process.stderr.read().splitlines()[-1] == "gb10: interrupted; what was measured is not kept"
    assert not listens(port)


def test_a_signal_between_start_and_end_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes while the server is started ends the server that was started."""
    made: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def start(*words: Any, **options: Any) -> Any:
        made.append(real(*words, **options))
        signal.raise_signal(signal.SIGINT)
        return made[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(against, "_taken", lambda port: False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            against._started(against.Server("A", ("sleep", "60"), 1), tmp_path / "log"),
        ):
            pytest.fail("it went on")
    finally:
        signal.signal(signal.SIGINT, before)
    assert [one.poll() for one in made] == [-signal.SIGTERM]


@pytest.mark.parametrize("kind", ["a file", "a folder in its place"])
def test_an_out_that_cannot_be_is_refused_before_the_start(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    if kind == "a file":
        out.write_text("kept")
    else:
        (out / "b.json").mkdir(parents=True)
    words = ["--out", str(out), "--against", "sh -c 'touch STARTED'"]
    assert cli.main(["bench", "run", *words, *QUICK, "--", "sh", "-c", f"touch {tmp_path}/started"]) == 2
    assert "--out" in capsys.readouterr().err
    assert not (tmp_path / "started").exists() and not Path("STARTED").exists()


def test_both_results_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user interrupts between the two files."""
    turned = result()
    monkeypatch.setattr(
        against, "turns", lambda *words, **options: [turned, replace(turned, about={"model": 1})]
    )
    real = Result.as_json

    def written(self: Result) -> dict[str, Any]:
        if self.about == {"model": 1}:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(Result, "as_json", written)
    out = tmp_path / "out"
    given = ["bench", "run", "--against", "true", *QUICK, "--out", str(out), "--", "true"]
    assert cli.main(given) == 130
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("vllm serve M --api-key secret --port 1", "vllm serve M --api-key *** --port 1"),
        ("vllm serve M --api-key='a secret' -x", "vllm serve M --api-key=*** -x"),
        (
            """bench run --against 'vllm serve --hf-token secret' -- x""",
            "bench run --against 'vllm serve --hf-token ***' -- x",
        ),
        ("serve --api-keys", "serve --api-keys"),
        (
            "env HF_TOKEN=hf_x VLLM_API_KEY='sk x' openai_api_key=y MY_SECRET=z A=b serve",
            "env HF_TOKEN=*** VLLM_API_KEY=*** openai_api_key=*** MY_SECRET=*** A=b serve",
        ),
    ],
)
def test_secrets_are_not_told(command: str, shown: str) -> None:
    assert told(command) == shown


def test_ports_of_commands() -> None:
    for words, port in (
        ("true", 8000),
        ("true --port 9000", 9000),
        ("true --port=9000", 9000),
        ("true --port 1 --port 9001", 9001),
        ("true --port", 8000),
    ):
        assert against.server("A", words).port == port


def test_options_after_the_dashes_are_the_servers(capsys: pytest.CaptureFixture[str]) -> None:
    """`--texts` of this command takes several values; a server's of that name is not touched."""
    ours = ["no-such-program", "--texts", "a", "b", "--port", "9", "it's"]
    assert cli.main(["bench", "run", "--against", "true", *QUICK, "--", *ours]) == 2
    assert "B's command 'no-such-program' is no program" in capsys.readouterr().err
    assert json.loads(json.dumps(shlex.split(shlex.join(ours)))) == ours
    assert os.environ.get("PATH")


def test_the_client_leaves_the_servers_logging_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a server that is measured says nothing of what it runs."""
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
    load.prepare()
    assert "VLLM_LOGGING_LEVEL" not in os.environ
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    load.prepare()
    assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"
