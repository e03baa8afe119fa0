"""``gb10 cluster up``: shell scripts as nodes. What is started in which order, and that all end together."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]
import pytest
from folders import Hosts

from gb10.cluster import guard
from gb10.cluster.shell import Local
from gb10.cluster.up import STOP_TIMEOUT

HEAD = """\
#!/bin/sh
echo $$ >>NOTES/head
echo "loading on $VLLM_HOST_IP"
sleep 0.3
echo 'ready after 1 s: http://127.0.0.1:8000/v1  (model name: gb10-demo)'
exec sleep 600
"""
WORKER = """\
#!/bin/sh
echo $$ >>NOTES/worker
exec sleep 600
"""


class Up:
    """``gb10 cluster up`` on the test's hosts, as a process of its own."""

    def __init__(self, hosts: Hosts, notes: Path) -> None:
        self._hosts, self.notes = hosts, notes
        self._log = notes / "log"
        self.process: subprocess.Popen[bytes]

    def nodes(self, *, head: str = HEAD, worker: str = WORKER) -> None:
        """What runs on the hosts; NOTES stands for the folder of notes."""
        self._hosts.serves("spark-a", head.replace("NOTES", str(self.notes)))
        self._hosts.serves("spark-b", worker.replace("NOTES", str(self.notes)))

    def start(self, *words: str) -> None:
        """Start it. Its output goes into a file."""
        options = ["--ssh", self._hosts.ssh, "--command", self._hosts.program, *words]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gb10", "cluster", "up", "spark-a", "spark-b", *options],
                stdout=log,
                stderr=log,
                start_new_session=True,
                # What runs these tests in the background may ignore it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def said(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def wait(self, done: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait for something; fails with what was printed when it does not come."""
        until = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < until, self.said
            time.sleep(0.05)

    def wait_said(self, text: str, times: int = 1) -> None:
        """Wait until it has printed ``text``."""
        self.wait(lambda: self.said.count(text) >= times)

    def status(self, seconds: float = 60.0) -> int:
        """Its exit status."""
        self.wait(lambda: self.process.poll() is not None, seconds)
        return self.process.wait()

    def pids(self) -> list[int]:
        """All that was started on the hosts."""
        return [
            int(line)
            for name in ("head", "worker")
            if (file := self.notes / name).exists()
            for line in file.read_text().split()
        ]

    def alive(self) -> list[int]:
        """Those that still run; one that ended and was not waited for is none."""
        return [
            pid
            for pid in self.pids()
            if (stat := Path(f"/proc/{pid}/stat")).exists() and stat.read_text().split()[2] != "Z"
        ]


@pytest.fixture
def up(hosts: Hosts, tmp_path: Path) -> Iterator[Up]:
    notes = tmp_path / "notes"
    notes.mkdir()
    one = Up(hosts, notes)
    one.nodes()
    yield one
    if hasattr(one, "process") and one.process.poll() is None:
        one.process.kill()
        one.process.wait()
    for pid in one.alive():
        os.kill(pid, signal.SIGKILL)


def test_workers_come_first_and_all_end_on_a_signal(up: Up) -> None:
    up.start()
    up.wait_said(" s on spark-a, spark-b: http://127.0.0.1:8000/v1 of spark-a")
    said = up.said
    assert said.index("starting spark-b") < said.index("starting spark-a")
    assert "spark-a | loading on 192.168.100.1\n" in said and guard.STARTED not in said
    assert len(up.alive()) == 2
    up.process.send_signal(signal.SIGTERM)
    assert up.status() == 0
    assert up.alive() == [] and up.said.endswith("stopped\n")


def test_interrupted(up: Up) -> None:
    up.start()
    up.wait_said("of spark-a")
    # As a terminal does it: the whole group.
    os.killpg(up.process.pid, signal.SIGINT)
    assert up.status() == 130
    assert up.alive() == []


def test_before_it_is_ready(up: Up) -> None:
    up.nodes(head=HEAD.replace("sleep 0.3", "sleep 600"))
    up.start()
    up.wait_said("loading on")
    up.process.send_signal(signal.SIGTERM)
    assert up.status() == 0
    assert up.alive() == []


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (
            "echo 'it is over'; exit 3",
            "spark-b (worker 1) ended with status 3: it is over; all nodes were ended",
        ),
        ("printf 'red \\033[31m'; exit 3", "spark-b (worker 1) ended with status 3: red [31m; all"),
        (
            "yes word | head -n 9999 | tr '\\n' ' '; exit 3",
            "spark-b (worker 1) ended with status 3: word word",
        ),
        ("kill -9 $$", "spark-b (worker 1) was ended by signal 9"),
        ("exit 255", "the ssh connection to spark-b (worker 1) ended"),
        ("exit 0", "spark-b (worker 1) ended with status 0; all nodes were ended"),
    ],
)
def test_one_that_ends_takes_the_others_along(up: Up, end: str, said: str) -> None:
    up.nodes(
        worker=f"#!/bin/sh\necho $$ >>NOTES/worker\nwhile [ ! -e NOTES/now ]; do sleep 0.1; done\n{end}\n"
    )
    up.start()
    up.wait_said("of spark-a")
    (up.notes / "now").touch()
    assert up.status() == 1
    assert f"gb10: error: {said}" in up.said and up.alive() == []
    assert "\033" not in up.said and len(up.said.splitlines()[-1]) < 500


def test_the_head_ends_before_it_is_ready(up: Up) -> None:
    up.nodes(head="#!/bin/sh\necho 'gb10: error: no memory'\necho more\nexit 1\n")
    up.start()
    assert up.status() == 1
    assert "gb10: error: spark-a (head) ended with status 1: no memory" in up.said
    assert up.alive() == []


def test_what_a_node_refuses_is_bad_input(up: Up) -> None:
    """Also with --restart: it would be refused again."""
    up.nodes(worker="#!/bin/sh\necho 'gb10: error: no such model' >&2\nexit 2\n")
    up.start("--restart")
    assert up.status() == 2
    assert "gb10: error: spark-b (worker 1) ended with status 2: no such model" in up.said
    assert up.alive() == []


def test_restart(up: Up) -> None:
    up.start("--restart")
    up.wait_said("of spark-a")
    worker = int((up.notes / "worker").read_text())
    os.kill(worker, signal.SIGKILL)
    up.wait_said("of spark-a", 2)
    assert (
        "spark-b (worker 1) was ended by signal 9; all nodes were ended\nstarting all again in 5 s" in up.said
    )
    assert len(up.pids()) == 4 and len(up.alive()) == 2
    up.process.send_signal(signal.SIGTERM)
    assert up.status() == 0
    assert up.alive() == []


def test_stopped_while_it_waits_for_the_next_start(up: Up) -> None:
    up.nodes(worker="#!/bin/sh\nexit 1\n")
    up.start("--restart")
    up.wait_said("starting all again in 5 s")
    up.process.send_signal(signal.SIGTERM)
    assert up.status(3.0) == 0


def test_the_program_that_connects_is_killed(up: Up) -> None:
    """The folder's ssh becomes the host's shell, so here the node is left to the test."""
    up.start()
    up.wait_said("of spark-a")
    clients = psutil.Process(up.process.pid).children()
    (client,) = (each for each in clients if "spark-b" in each.environ()["PATH"])
    client.kill()
    assert up.status() == 1
    assert "gb10: error: the ssh connection to spark-b (worker 1) was ended here by signal 9" in up.said
    for pid in up.alive():
        os.kill(pid, signal.SIGKILL)


def test_it_is_killed(up: Up) -> None:
    """Nobody tells the hosts: their connection is gone."""
    up.start()
    up.wait_said("of spark-a")
    up.process.kill()
    up.wait(lambda: up.alive() == [], 5.0)


def test_nodes_that_heed_no_signal(up: Up) -> None:
    deaf = "#!/bin/sh\ntrap '' TERM INT HUP\necho $$ >>NOTES/worker\necho here\nwhile :; do sleep 0.2; done\n"
    up.nodes(worker=deaf)
    up.start()
    up.wait_said("of spark-a")
    began = time.monotonic()
    up.process.send_signal(signal.SIGTERM)
    assert up.status() == 0
    assert up.alive() == [] and guard.GRACE - 1 < time.monotonic() - began < STOP_TIMEOUT < 15


def test_a_second_signal_does_not_wait(up: Up) -> None:
    up.nodes(worker="#!/bin/sh\ntrap '' TERM\necho $$ >>NOTES/worker\nwhile :; do sleep 0.2; done\n")
    up.start()
    up.wait_said("of spark-a")
    up.process.send_signal(signal.SIGTERM)
    time.sleep(1.0)
    up.process.send_signal(signal.SIGTERM)
    assert up.status(2.0) == 0
    up.wait(lambda: up.alive() == [], guard.GRACE + 3)


def test_stopped_while_a_host_is_asked(up: Up, hosts: Hosts) -> None:
    hosts.write(
        "spark-b/bin/uname",
        "#!/bin/sh\ntouch NOTES/asked\nsleep 20\n".replace("NOTES", str(up.notes)),
        program=True,
    )
    up.start()
    up.wait(lambda: (up.notes / "asked").exists())
    up.process.send_signal(signal.SIGTERM)
    assert up.status(5.0) == 0
    assert up.said == "stopped\n"


def test_a_host_does_not_start_a_shell(up: Up, hosts: Hosts) -> None:
    """sshd may take a connection and give it nothing."""
    script = (hosts.folder / "ssh").read_text()
    hosts.write("ssh", script.replace('exec sh -c "$command"', "exec sleep 600"), program=True)
    up.start()
    up.wait(lambda: "starting spark-b" in up.said)
    up.process.send_signal(signal.SIGTERM)
    assert up.status() == 0
    assert "starting spark-a" not in up.said


def _guarded(command: list[str], *, silence: int = 20, grace: int = 1) -> subprocess.Popen[bytes]:
    return Local().start(guard.guarded(command, silence=silence, grace=grace))


def test_silence_ends_a_node() -> None:
    """A network that is cut closes no connection."""
    process = _guarded(["sleep", "600"], silence=2)
    assert process.stdin is not None and process.stdout is not None
    began = time.monotonic()
    for _ in range(6):
        process.stdin.write(guard.BEAT)
        process.stdin.flush()
        time.sleep(0.5)
    assert process.poll() is None
    assert process.wait(10) == 128 + signal.SIGTERM
    assert time.monotonic() - began > 4.0


def test_an_end_before_the_group_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What starts the node has not come to its session yet, and is all that a signal can reach."""
    slow = tmp_path / "setsid"
    slow.write_text(f'#!/bin/sh\nsleep 1\nexec {shutil.which("setsid")} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    process = _guarded(["touch", str(tmp_path / "ran")])
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 128 + signal.SIGTERM
    time.sleep(1.5)
    assert not (tmp_path / "ran").exists()


def test_what_a_node_left_in_its_group_goes_too(tmp_path: Path) -> None:
    note = tmp_path / "left"
    process = _guarded(["sh", "-c", f"sleep 600 & echo $! >{note}; kill -9 $$"])
    assert process.wait(10) == 128 + signal.SIGKILL
    stat = Path(f"/proc/{note.read_text().strip()}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_words_arrive_as_they_are() -> None:
    words = ["", "a b", "'", '"$HOME"', "*", "\\", "ü", "-n", "--"]
    process = _guarded([sys.executable, "-c", "import sys; print(ascii(sys.argv[1:]))", *words])
    assert process.wait(10) == 0 and process.stdout is not None
    assert process.stdout.read().decode().splitlines() == [guard.STARTED, ascii(words)]


def test_the_status_of_a_program_that_is_not_there() -> None:
    process = _guarded(["/no/such/program"])
    assert process.wait(10) == 127 and process.stdout is not None
    assert b"/no/such/program" in process.stdout.read()
