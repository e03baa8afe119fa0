#!/usr/bin/env python3
"""A real Prometheus scrapes a real server: every expression of the dashboard is asked, and must have data.

usage: tests/nix/metrics/machine.py COMMAND...

COMMAND starts the server, such as ./nixw run .#serve -- ; it gets --port and --api-key. With
--speculative-config in it acceptance must have data, too. Needs prometheus and
promtool (Debian's package prometheus, whose service need not run). Prometheus and the server listen on
loopback. One line for each thing that was seen; exit status 1 where something was not.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs" / "metrics"
KEY = "the-key-of-the-test"
START = 600.0
"""Seconds for a start on a busy machine."""

OF_DRAFTS = ("gb10:drafts:accepted_ratio",)
"""Empty where the server has no drafts."""

failed = 0


def seen(words: str, good: bool, more: object = "") -> None:
    """One line on something that should be so."""
    global failed
    failed += not good
    print(f"{'passed' if good else 'FAILED'}  {words}{'' if good else f': {more}'}", flush=True)


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str, key: str = "", body: object = None) -> tuple[int, str]:
    """Status and text of an answer; status 0 where nobody answers."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=120) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError:
        return 0, ""


def wait(limit: float, found: Callable[[], Any]) -> Any:
    """What ``found`` gives once it gives something; the last nothing after ``limit`` seconds."""
    until = time.monotonic() + limit
    while not (result := found()) and time.monotonic() < until:
        time.sleep(0.5)
    return result


@contextlib.contextmanager
def running(command: Sequence[str], log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in ``log``; ended afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **variables}
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


class Prometheus:
    """Its HTTP API."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **asked: str) -> Any:
        """The ``data`` of an answer; None where there is none."""
        status, text = get(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(asked)}")
        return json.loads(text).get("data") if status == 200 else None

    def query(self, expression: str) -> list[Any]:
        """The samples of an expression now."""
        found = self.ask("query", query=expression)
        return list(found["result"]) if found else []

    def up(self, value: str) -> bool:
        """Whether all targets' last scrape went so ("1": well)."""
        found = self.query("up")
        return bool(found) and all(one["value"][1] == value for one in found)


def configuration(folder: Path, server: int) -> Path:
    """The committed configuration with this server's port and key, scraping each second, and its rules."""
    text = (DOCS / "prometheus.yml").read_text()
    key = folder / "key"
    key.write_text(KEY)
    for old, new in (
        ("/etc/prometheus/gb10.key", str(key)),
        ("127.0.0.1:8000", f"127.0.0.1:{server}"),
        ("scrape_interval: 15s", "scrape_interval: 1s\n  evaluation_interval: 1s"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "rules.yml").write_text((DOCS / "rules.yml").read_text())
    (folder / "prometheus.yml").write_text(text)
    return folder / "prometheus.yml"


def expressions() -> Iterator[tuple[str, str]]:
    """Title and expression of all panels, for every server."""
    for panel in json.loads((DOCS / "grafana.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$job", "gb10").replace("$instance", ".+")


def tool(*arguments: str) -> None:
    """What promtool says of a file."""
    done = subprocess.run(["promtool", *arguments], cwd=DOCS, capture_output=True, text=True)
    seen(f"promtool {' '.join(arguments)}", done.returncode == 0, done.stdout + done.stderr)


def complete(url: str, stop: threading.Event) -> None:
    """Ask for tokens until ``stop``."""
    body = {"model": "gb10-demo", "prompt": "def add(a, b):", "max_tokens": 48, "ignore_eos": True}
    while not stop.is_set():
        get(f"{url}/v1/completions", KEY, body)


def look(prometheus: Prometheus, url: str, drafts: bool) -> None:
    """What must be seen of a server that answers requests, with ``drafts`` or without."""
    stop = threading.Event()
    clients = [threading.Thread(target=complete, args=(url, stop)) for _ in range(2)]
    for client in clients:
        client.start()
    try:
        ratio = "gb10:decode_step:bandwidth_ratio"
        seen("the share of the bandwidth is there", bool(wait(150, lambda: prometheus.query(ratio))))
        several = "gb10:decode_step:sequences > 1.5"
        seen("two clients are two sequences of a step", bool(wait(90, lambda: prometheus.query(several))))
        for title, expression in expressions():
            found = prometheus.query(expression)
            empty = not drafts and any(name in expression for name in OF_DRAFTS)
            seen(f"{'nothing' if empty else 'data'}: {title}: {expression}", bool(found) != empty, found)
        for name in ("seconds", "sequences", "read_bytes", "bandwidth_ratio"):
            for one in prometheus.query(f"gb10:decode_step:{name}"):
                print(f"        gb10:decode_step:{name} {one['value'][1]}")
        slowest = prometheus.query("max_over_time(scrape_duration_seconds[1m])")
        print(f"        slowest scrape under load: {slowest[0]['value'][1]} s")
        # Each time the same bytes: nothing grows with what was served.
        samples = prometheus.query("scrape_samples_scraped")
        print(f"        samples in a scrape: {samples[0]['value'][1]}")
    finally:
        stop.set()
        for client in clients:
            client.join()


def main(command: list[str]) -> int:
    """Start both, look, end the server while Prometheus watches; the exit status."""
    tool("check", "rules", "rules.yml")
    tool("check", "config", "--syntax-only", "prometheus.yml")
    tool("test", "rules", "rules-test.yml")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, server, own = Path(name), free_port(), free_port()
        url, prometheus = f"http://127.0.0.1:{server}", Prometheus(own)
        given = ["--port", str(server), "--api-key", KEY]
        variables = {"GB10_CPU_NVFP4_MODE": "packed", "GB10_READ_BANDWIDTH": "20"}
        stack.enter_context(
            running(
                [
                    "prometheus",
                    f"--config.file={configuration(folder, server)}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{own}",
                ],
                folder / "prometheus.log",
            )
        )
        seen("Prometheus starts", bool(wait(30, lambda: prometheus.ask("status/buildinfo"))))
        with running([*command, *given], folder / "serve.log", **variables) as process:
            seen("while the model loads the target is down", bool(wait(30, lambda: prometheus.up("0"))))
            log = folder / "serve.log"
            ready = wait(START, lambda: "ready after" in log.read_text() or process.poll() is not None)
            seen("the server serves", ready and process.poll() is None, log.read_text()[-2000:])
            seen("the target is up, with the key", bool(wait(20, lambda: prometheus.up("1"))))
            seen("without the key 401", get(f"{url}/metrics")[0] == 401)
            if process.poll() is None:
                look(prometheus, url, "--speculative-config" in command)
                kill_engine(prometheus, process, log)
    return failed > 0


def kill_engine(prometheus: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    """vLLM's engine dies: the target goes down, and the samples before stay."""
    cores = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/comm")
        if _under(int(path.parent.name), process.pid) and path.read_text().startswith("VLLM::EngineCor")
    ]
    seen("there is one engine", len(cores) == 1, cores)
    for pid in cores:
        os.kill(pid, signal.SIGKILL)
    seen("the engine was killed: the target goes down", bool(wait(30, lambda: prometheus.up("0"))))
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
    seen("the server ends with status 1", process.poll() == 1, log.read_text()[-1000:])


def _under(pid: int, ancestor: int) -> bool:
    """Whether a process descends from another one."""
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return False
        found = re.search(r"^PPid:\s+(\d+)", status, re.MULTILINE)
        pid = int(found[1]) if found else 0
    return False


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: tests/nix/metrics/machine.py COMMAND...")
    sys.exit(main(sys.argv[1:]))
