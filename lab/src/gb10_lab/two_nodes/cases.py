"""The forms in which the model is served, and the faults that are made while it answers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gb10_lab.two_nodes.asking import Asked, is_healthy, tokens
from gb10_lab.two_nodes.processes import ENGINE, RAY_WORKER, WORKER, Node

START_LIMIT = 400.0
"""Seconds that a start may take on a busy machine."""
STOP_LIMIT = 20.0
"""Seconds from SIGTERM to the end, after which a node counts as one that hangs."""
LONG = 1900
"""New tokens of the requests during which something breaks."""
LATE = 1.0
"""Seconds from the fault to one more request."""
PORT, MASTER_PORT = 8000, 29501
_URL = f"http://127.0.0.1:{PORT}"
_SLOW_ADDRESSES = ("10.78.0.1", "10.78.0.2")
_SLOW_DEVICES = ("gb10-slow-a", "gb10-slow-b")


@dataclass(frozen=True)
class Place:
    """Where a node runs: a network namespace (None: this one), and its address and device there."""

    namespace: str | None
    address: str
    device: str

    @property
    def within(self) -> list[str]:
        """What a command there begins with."""
        return ["ip", "netns", "exec", self.namespace] if self.namespace else []


FORMS = {
    "one": "one rank",
    "one-host": "two ranks on one host",
    "nodes": "two ranks on two nodes",
    "slow": "two ranks on two nodes, over a slow cable",
}
"""What the tokens are compared between."""


@dataclass(frozen=True)
class Fault:
    """Something that breaks: what, how, and whether requests are running."""

    what: str
    make: Callable[["Bench", Node, Node], None]
    busy: bool = True


@dataclass
class Bench:
    """One model, one server and one way to split it; ``limit``: seconds for all to end after a fault."""

    model: Path
    out: Path
    places: tuple[Place, Place]
    server: str
    split: str
    limit: float
    slow: tuple[float, float]
    """Milliseconds one way and Mbit/s."""
    executor: str = "mp"
    """What joins the nodes: vLLM's own executor, or Ray."""

    def _command(self, *more: str, api: bool = True) -> list[str]:
        start = ["-m", "gb10"] if self.server == "gb10" else ["-m", "vllm.entrypoints.cli.main"]
        own = ["--served-model-name", "demo", "--max-model-len", "2048", "--enforce-eager", *more]
        listen = ["--host", "127.0.0.1", "--port", str(PORT)] if api else []
        return [sys.executable, *start, "serve", str(self.model), *own, *listen]

    def _variables(self, place: Place, alone: bool) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "GB10_"))}
        kept |= {
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "NO_COLOR": "1",
            # Each node has files of its own, as two machines do.
            "XDG_STATE_HOME": str(self.out / "state" / (place.namespace or "head")),
            "GB10_PROFILE": "cpu",
        }
        if self.server == "vllm":
            del kept["GB10_PROFILE"]
            if not alone:
                kept |= {
                    "VLLM_HOST_IP": place.address,
                    "GLOO_SOCKET_IFNAME": place.device,
                    "NCCL_SOCKET_IFNAME": place.device,
                }
        return kept

    @property
    def _split(self) -> list[str]:
        return [f"--{self.split}-parallel-size", "2"]

    @contextmanager
    def _started(self, case: str, places: tuple[Place, Place] | None) -> Iterator[list[Node]]:
        """The head and, where there are two, the other node, ready; all of them are ended at the end."""
        nodes: list[Node] = []
        log = f"{self.server}-{self.split}-{case}"
        if places is None:
            words = [] if case == "one" else self._split
            commands = [("head", self._command(*words), Place(None, "", ""))]
        else:
            at = ["--nnodes", "2", "--master-addr", places[0].address, "--master-port", str(MASTER_PORT)]
            words = [*self._split, *at, "--distributed-executor-backend", self.executor]
            commands = [
                ("other", self._command(*words, "--node-rank", "1", "--headless", api=False), places[1]),
                ("head", self._command(*words, "--node-rank", "0"), places[0]),
            ]
        try:
            for name, command, place in commands:
                variables = self._variables(place, places is None)
                nodes.append(Node(name, command, variables, self.out / f"{log}-{name}.log", place.namespace))
            nodes.reverse()
            until = time.monotonic() + START_LIMIT
            while not is_healthy(_URL):
                if gone := [node for node in nodes if node.ended is not None]:
                    raise RuntimeError(
                        f"{gone[0].name} ended while starting: {' '.join(gone[0].said()[-2:])}"
                    )
                if time.monotonic() > until:
                    raise RuntimeError(f"not ready after {START_LIMIT:g} s")
                time.sleep(0.5)
            yield nodes
        finally:
            for node in nodes:
                node.family()
            for node in nodes:
                node.kill()
                node.process.wait(30)

    @contextmanager
    def _slow_cable(self) -> Iterator[tuple[Place, Place]]:
        delay, rate = self.slow
        words = [_SLOW_DEVICES[0], f"{_SLOW_ADDRESSES[0]}/24", self.places[1].namespace or ""]
        words += [_SLOW_DEVICES[1], f"{_SLOW_ADDRESSES[1]}/24", str(delay / 1e3), str(rate * 1e6)]
        cable = subprocess.Popen(
            [sys.executable, "-m", "gb10_lab.two_nodes.cable", *words], stdout=subprocess.PIPE, text=True
        )
        try:
            if cable.stdout is None or cable.stdout.readline() != "up\n":
                raise RuntimeError("the slow cable did not come up")
            first, second = (
                Place(place.namespace, address, device)
                for place, address, device in zip(self.places, _SLOW_ADDRESSES, _SLOW_DEVICES, strict=True)
            )
            yield first, second
        finally:
            cable.kill()
            cable.wait()

    def form(self, case: str) -> dict[str, Any]:
        """Tokens in one of `FORMS`, and how fast; then SIGTERM, as a user ends it."""
        if case == "slow":
            with self._slow_cable() as places:
                return self._form(case, places)
        return self._form(case, self.places if case == "nodes" else None)

    def _form(self, case: str, places: tuple[Place, Place] | None) -> dict[str, Any]:
        began = time.monotonic()
        with self._started(case, places) as nodes:
            ready = time.monotonic() - began
            alone, speed = tokens(_URL, "demo", together=False)
            batch, batch_speed = tokens(_URL, "demo", together=True)
            stop = self._stop(nodes)
        return {
            "case": case,
            "what": FORMS[case],
            "ready_seconds": round(ready, 1),
            "tokens_per_second": {"one at a time": round(speed, 1), "together": round(batch_speed, 1)},
            "stop": stop,
            "tokens": alone,
            "tokens_together": batch,
        }

    def _stop(self, nodes: list[Node]) -> dict[str, Any]:
        """End both with SIGTERM at once: seconds and exit statuses, and what is left."""
        for node in nodes:
            node.family()
        began = time.monotonic()
        for node in nodes:
            if node.ended is None:
                node.process.send_signal(signal.SIGTERM)
        return {node.name: self._end(node, began, STOP_LIMIT) for node in nodes}

    def _end(self, node: Node, since: float, limit: float) -> dict[str, Any]:
        while node.ended is None and time.monotonic() < since + limit:
            time.sleep(0.05)
        if node.ended is None:
            return {"status": None, "seconds": None}
        return {
            "status": node.process.returncode,
            "seconds": round(node.ended - since, 1),
            "left": node.left(3.0),
        }

    def fault(self, case: str) -> dict[str, Any]:
        """One of `FAULTS`, a stream, another request and, a second later, a third: what becomes of them."""
        fault = FAULTS[case]
        with self._started(case, self.places) as (head, other):
            asked: dict[str, Asked] = {}
            if fault.busy:
                for name, stream in (("stream", True), ("whole", False)):
                    asked[name] = Asked(_URL, "demo", stream, LONG, self.limit + 60).start()
                if not asked["stream"].first.wait(60):
                    raise RuntimeError(f"no token within 60 s: {asked['stream'].got}")
                time.sleep(2)
            for node in (head, other):
                node.family()
                node.mark()
            began = time.monotonic()
            fault.make(self, head, other)
            time.sleep(LATE)
            asked["late"] = Asked(_URL, "demo", False, 16, self.limit + 60).start()
            until = began + self.limit
            while time.monotonic() < until and not (
                head.ended and other.ended and all(each.ended for each in asked.values())
            ):
                for node in (head, other):
                    node.family()
                time.sleep(0.05)
            row = {
                "case": case,
                "what": fault.what,
                "limit": self.limit,
                "clients": {name: _became(each, began) for name, each in asked.items()},
                "healthy_at_limit": head.ended is None and is_healthy(_URL),
                "head": self._end(head, began, 0),
                "other": self._end(other, began, 0),
                "head_says": _words(head, self.server),
                "other_says": _words(other, self.server),
            }
            hanging = [node for node in (head, other) if node.ended is None]
            if hanging:
                row["sigterm"] = self._stop(hanging)
        return row


def _became(asked: Asked, since: float) -> dict[str, Any]:
    if asked.ended is None:
        return {"got": "nothing, hangs", "seconds": None, "pieces": asked.pieces}
    return {"got": asked.got, "seconds": round(asked.ended - since, 1), "pieces": asked.pieces}


def _words(node: Node, server: str) -> list[str]:
    """What a node printed after the fault: all of it (gb10), or the first errors (vLLM)."""
    said = node.said()
    if server == "vllm":
        said = [line for line in said if "ERROR" in line and ("rror:" in line or "died" in line)]
    return [line[:300] for line in said[:6]]


def _kill(title: str) -> Callable[[Bench, Node, Node], None]:
    def make(bench: Bench, head: Node, other: Node) -> None:
        wanted = RAY_WORKER if title == WORKER and bench.executor == "ray" else title
        found = (head if title == ENGINE else other).called(wanted)
        if not found:
            raise RuntimeError(f"there is no process {wanted}")
        os.kill(found[0].pid, signal.SIGKILL)

    return make


def _kill_node(_bench: Bench, _head: Node, other: Node) -> None:
    other.kill()


def _kill_head(_bench: Bench, head: Node, _other: Node) -> None:
    head.kill()


def _kill_serve(_bench: Bench, _head: Node, other: Node) -> None:
    other.process.send_signal(signal.SIGKILL)


def _stop_node(_bench: Bench, _head: Node, other: Node) -> None:
    other.process.send_signal(signal.SIGTERM)


def _cut(bench: Bench, _head: Node, _other: Node) -> None:
    place = bench.places[1]
    subprocess.run([*place.within, "ip", "link", "set", place.device, "down"], check=True)


def _silence(bench: Bench, _head: Node, _other: Node) -> None:
    """No packet comes any more and none is refused: the other machine, or a switch, has no power."""
    for place in bench.places:
        subprocess.run(
            [*place.within, "iptables", "-A", "INPUT", "-i", place.device, "-j", "DROP"], check=True
        )


FAULTS: Mapping[str, Fault] = {
    "worker-killed": Fault("the other node's worker: kill -9", _kill(WORKER)),
    "node-killed": Fault("all processes of the other node: kill -9", _kill_node),
    "serve-killed": Fault("the other node's serve alone: kill -9", _kill_serve),
    "node-stopped": Fault("the other node's serve: SIGTERM", _stop_node),
    "engine-killed": Fault("the head's engine: kill -9", _kill(ENGINE)),
    "head-killed": Fault("all processes of the head: kill -9", _kill_head),
    "link-down": Fault("the link down (ip link set down)", _cut),
    "silence": Fault("every packet between them dropped", _silence),
    "idle-worker-killed": Fault("as worker-killed, no request running", _kill(WORKER), busy=False),
    "idle-link-down": Fault("as link-down, no request running", _cut, busy=False),
}


def compare(one: list[list[int]], other: list[list[int]]) -> dict[str, Any]:
    """How many of the answers differ, and at which token each of those first does."""
    first = [
        next((at for at, pair in enumerate(zip_longest(a, b)) if pair[0] != pair[1]), None)
        for a, b in zip(one, other, strict=True)
    ]
    return {"differ": sum(at is not None for at in first), "of": len(first), "first": first}
