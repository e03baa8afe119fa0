"""What a scrape gets: read by Prometheus' own parser, off the application that vLLM would serve."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

pytest.importorskip("vllm", reason="vLLM is not installed")
from vllm.entrypoints.serve.instrumentator.metrics import attach_router
from vllm.plugins.endpoint_plugins import interface

from gb10.machine import gauges, watch
from gb10.vllm_plugin.server import endpoints, metrics
from gb10.vllm_plugin.server.canary import Sung
from gb10.vllm_plugin.server.endpoints import Endpoints

TOLD = {
    "gb10": "0.1.0",
    "vllm": "0.32.0",
    "target": "CPU",
    "engine": None,
    "planned": [
        {"operation": "nvfp4_moe", "variant": "w4a4", "batch": [1, 8], "backend": "a", "whose": "ours"},
        {"operation": "nvfp4_moe", "variant": "w4a4", "batch": [9, None], "backend": "b", "whose": "vLLM's"},
    ],
    "ran": [
        {"operation": "nvfp4_moe", "kernel": "a", "tokens": 3, "whose": "ours"},
        {"operation": "nvfp4_moe", "kernel": "a", "tokens": 5, "whose": "ours"},
    ],
    "differences": ["one"],
}
FIGURES = {
    "weights": {"lm_head": 1000, "routed experts": 500},
    "state": 20,
    "kv": 4,
    "device": {"name": "NVIDIA GB10", "source": "gb10", "rate": 2.28e11},
}
Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


class Server:
    """The application, after vLLM has put its routes and our plug-in's into it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        app = FastAPI()
        attach_router(app)
        self.plugin = Endpoints()
        patch.setattr("vllm.plugins.load_endpoint_plugins", lambda _=None: [self.plugin])
        interface.attach_endpoint_plugins(app, ())
        self.client = TestClient(app)
        cache = SimpleNamespace(kv_cache_size_tokens=1024)
        self.engine = SimpleNamespace(errored=False, vllm_config=SimpleNamespace(cache_config=cache))

    def start(self) -> None:
        """The engine is up."""
        self.plugin._ours.client = self.engine

    def scrape(self, path: str = "/metrics") -> Samples:
        """All samples by name and labels; a name that comes twice is a fault."""
        answer = self.client.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=")
        found: Samples = {}
        families = list(text_string_to_metric_families(answer.text))
        names = [family.name for family in families]
        assert len(names) == len(set(names))
        for family in families:
            assert family.documentation and family.type != "unknown"
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return found


@pytest.fixture
def calls() -> list[float]:
    """When the report was asked for."""
    return []


@pytest.fixture
def server(clean_environment: pytest.MonkeyPatch, calls: list[float]) -> Iterator[Callable[..., Server]]:
    """A function from figures to a server."""

    def make(figures: Mapping[str, Any] = FIGURES, told: Mapping[str, Any] = TOLD) -> Server:
        def report() -> Mapping[str, Any]:
            calls.append(time.monotonic())
            return told

        endpoints.reporting(report, figures)
        return Server(clean_environment)

    yield make
    endpoints._report, endpoints._figures = None, {}


def one(samples: Samples, name: str) -> float:
    """The only sample of a name."""
    (value,) = samples[f"gb10_{name}"].values()
    return value


def test_what_runs_and_what_is_read(server: Callable[..., Server]) -> None:
    made = server()
    made.start()
    found = made.scrape()
    labels = (("engine", ""), ("gb10", "0.1.0"), ("target", "CPU"), ("vllm", "0.32.0"))
    assert found["gb10_build_info"] == {labels: 1}
    batches = {dict(labels)["batch"]: dict(labels)["backend"] for labels in found["gb10_route_info"]}
    assert batches == {"1-8": "a", "9-": "b"}
    assert found["gb10_dispatch_info"] == {
        (("kernel", "a"), ("operation", "nvfp4_moe"), ("whose", "ours")): 1
    }
    assert one(found, "route_differences") == 1
    assert found["gb10_decode_read_bytes"] == {
        (("component", "lm_head"),): 1000,
        (("component", "routed experts"),): 500,
    }
    assert one(found, "state_bytes_per_sequence") == 20 and one(found, "kv_bytes_per_token") == 4
    assert one(found, "kv_cache_tokens") == 1024
    rate = (("device", "NVIDIA GB10"), ("source", "gb10"))
    assert found["gb10_device_read_bytes_per_second"] == {rate: 2.28e11}
    # vLLM's own are still there, at both paths.
    assert "python_info" in found and "python_info" in made.scrape("/metrics/")


def test_what_is_not_known_is_absent(server: Callable[..., Server]) -> None:
    """Before the engine is up, and with nothing to say of the checkpoint, there is no made-up number."""
    found = server({"missing": "why"}, {}).scrape()
    ours = {name for name in found if name.startswith("gb10_")}
    assert ours == {"gb10_canaries_total", "gb10_memory_available_bytes", "gb10_memory_total_bytes"}


def test_the_canary(server: Callable[..., Server]) -> None:
    made = server()
    assert "gb10_canary_passed" not in made.scrape()
    before = time.time()
    made.plugin.canaries.note(Sung(None, 14, 0.25, 0.01))
    found = made.scrape()
    assert (one(found, "canary_passed"), one(found, "canary_duration_seconds")) == (1, 0.25)
    assert one(found, "canary_apart_ratio") == 0.01
    assert before <= one(found, "canary_timestamp_seconds") <= time.time()
    made.plugin.canaries.note(Sung("noise", 14, 0.5, None))
    found = made.scrape()
    assert one(found, "canary_passed") == 0 and "gb10_canary_apart_ratio" not in found
    assert found["gb10_canaries_total"] == {(("verdict", "passed"),): 1, (("verdict", "failed"),): 1}


def test_health(server: Callable[..., Server], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    made = server()
    assert "gb10_healthy" not in made.scrape()
    made.start()
    assert one(made.scrape(), "healthy") == 1
    made.engine.errored = True
    assert one(made.scrape(), "healthy") == 0
    made.engine.errored = False
    made.plugin.health.fail("noise")
    assert one(made.scrape(), "healthy") == 0


def test_memory_has_the_keepers_levels(
    server: Callable[..., Server], clean_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    board = watch.Board(str(tmp_path / "board"), write=True)
    clean_environment.setenv(watch.ENV_NAME, str(tmp_path / "board"))
    clean_environment.setenv(watch.LIMITS_NAME, json.dumps(watch.Limits(3 << 20, 1 << 20).words))
    made = server()
    found = made.scrape()
    machine = (("limit", gauges.MACHINE),)
    assert found["gb10_memory_shed_bytes"][machine] == 3 << 20
    assert found["gb10_memory_stop_bytes"][machine] == 1 << 20
    free, total = (found[f"gb10_memory_{name}_bytes"][machine] for name in ("available", "total"))
    assert 0 < free < total == float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    assert one(found, "memory_short") == 0
    board.write("short")
    assert one(made.scrape(), "memory_short") == 1
    board.write(None)
    assert one(made.scrape(), "memory_short") == 0


def test_levels_that_are_off_are_absent(
    server: Callable[..., Server], clean_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    watch.Board(str(tmp_path / "board"), write=True)
    clean_environment.setenv(watch.ENV_NAME, str(tmp_path / "board"))
    clean_environment.setenv(watch.LIMITS_NAME, json.dumps(["off", "off", None]))
    found = server().scrape()
    assert "gb10_memory_shed_bytes" not in found and "gb10_memory_stop_bytes" not in found


def test_the_log_is_not_read_for_each_scrape(
    server: Callable[..., Server], calls: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = server()
    for _ in range(20):
        made.scrape()
    assert len(calls) == 1
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + metrics.FRESH + 1)
    made.scrape()
    assert len(calls) == 2


SEVERAL = """
import os, sys
from prometheus_client import Counter
Counter("theirs", "Of vLLM").inc(3)
from fastapi import FastAPI
from fastapi.testclient import TestClient
from vllm.entrypoints.serve.instrumentator.metrics import attach_router
from gb10.vllm_plugin.server.endpoints import Endpoints
app = FastAPI()
Endpoints().attach_router(app)
print(TestClient(app).get("/metrics").text)
"""


def test_several_processes_metrics_are_kept(clean_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """PROMETHEUS_MULTIPROC_DIR, which vLLM sets for several API servers, and users may."""
    variables = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SEVERAL], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {family.name: family for family in text_string_to_metric_families(done.stdout)}
    assert found["theirs"].samples[0].value == 3
    values = [sample.value for sample in found["gb10_memory_available_bytes"].samples]
    assert values and all(value > 0 and math.isfinite(value) for value in values)
