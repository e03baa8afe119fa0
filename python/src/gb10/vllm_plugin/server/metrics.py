"""Our part of ``/metrics``, beside vLLM's: what runs, what a token reads, memory, the canary, health.

vLLM's metrics are in the registry that it chose (prometheus_client's own, or that of several processes);
ours are made at each scrape from what this process has at hand, so both modes have them, and so has a server
with ``--disable-log-stats``. A scrape reads a few files of /proc and asks the engine nothing.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gb10.machine import gauges, watch
from gb10.vllm_plugin.server.canary import Sung
from gb10.vllm_plugin.server.health import Health

CONTENT_TYPE: str = CONTENT_TYPE_LATEST
"""What a scrape is answered as."""

FRESH = 60.0
"""Seconds for which a report of what runs is good: the log is read for it."""

Report = Callable[[], Mapping[str, Any]]


@dataclass
class Canaries:
    """What became of the canaries so far."""

    passed: int = 0
    failed: int = 0
    last: Sung | None = None
    at: float = 0.0
    """When the last one ended, in seconds since 1970."""

    def note(self, sung: Sung) -> None:
        """One more has ended."""
        self.last, self.at = sung, time.time()
        if sung.fault is None:
            self.passed += 1
        else:
            self.failed += 1


class Memory:
    """The limits on memory that `gb10.serve.keeper` watches, read anew; their levels are the keeper's own."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._limits = watch.Limits(*json.loads(environ.get(watch.LIMITS_NAME) or "[]"))
        self._gauges = gauges.gauges()
        board = environ.get(watch.ENV_NAME)
        self._board = watch.Board(board) if board else None

    def metrics(self) -> Iterable[Metric]:
        """Bytes by limit. Levels are there only where a keeper looks at them."""
        free = _gauge("memory_available_bytes", "Memory that is left below a limit", "limit")
        total = _gauge("memory_total_bytes", "Memory that a limit allows in all", "limit")
        shed = _gauge("memory_shed_bytes", "With less than this requests get 503", "limit")
        stop = _gauge("memory_stop_bytes", "With less than this vLLM is ended", "limit")
        for gauge in self._gauges:
            if (found := gauge.read()) is None:
                continue
            label = [gauge.name]
            free.add_metric(label, found[0])
            total.add_metric(label, found[1])
            for level, metric in ((self._limits.shed, shed), (self._limits.stop, stop)):
                if self._board is not None and (size := level(found[1])):
                    metric.add_metric(label, size)
        yield from (free, total, shed, stop)
        if self._board is not None:
            short = _gauge("memory_short", "1 while requests get 503 for want of memory")
            short.add_metric([], self._board.full)
            yield short


class Ours(Collector):
    """Everything that begins with ``gb10_``."""

    def __init__(
        self, health: Health, canaries: Canaries, report: Report, figures: Mapping[str, Any]
    ) -> None:
        self._health, self._canaries, self._figures = health, canaries, figures
        self._report = report
        self._told: Mapping[str, Any] = {}
        self._good_until = 0.0
        self._memory = Memory()
        self.client: Any = None
        """vLLM's AsyncLLM, once it is there."""

    def collect(self) -> Iterable[Metric]:
        """All of them, as they are now."""
        yield from self._runs()
        yield from self._reads()
        yield from self._memory.metrics()
        yield from self._well()

    def _runs(self) -> Iterable[Metric]:
        if time.monotonic() >= self._good_until:
            self._told, self._good_until = self._report(), time.monotonic() + FRESH
        told = self._told
        build = _gauge("build_info", "Versions, machine and engine", "gb10", "vllm", "target", "engine")
        words = [told.get(name) for name in ("gb10", "vllm", "target", "engine")]
        if any(words):
            build.add_metric([word or "" for word in words], 1)
        routes = _gauge(
            "route_info",
            "What was planned for an operation",
            "operation",
            "variant",
            "batch",
            "backend",
            "whose",
        )
        for row in told.get("planned", ()):
            low, high = row["batch"]
            batch = f"{low}-{'' if high is None else high}"
            labels = [row["operation"], row["variant"], batch, row["backend"], row["whose"]]
            routes.add_metric(labels, 1)
        ran = _gauge("dispatch_info", "What ran an operation", "operation", "kernel", "whose")
        found = ((one["operation"], one["kernel"], one["whose"]) for one in told.get("ran", ()))
        for each in dict.fromkeys(found):
            ran.add_metric(each, 1)
        yield from (build, routes, ran)
        if "differences" in told:
            differs = _gauge("route_differences", "Operations that run otherwise than planned")
            differs.add_metric([], len(told["differences"]))
            yield differs

    def _reads(self) -> Iterable[Metric]:
        found = self._figures
        if "weights" in found:
            reads = _gauge(
                "decode_read_bytes", "Weights that a decoding step of one sequence reads", "component"
            )
            for name, size in found["weights"].items():
                reads.add_metric([name], size)
            state = _gauge("state_bytes_per_sequence", "Recurrent states that a step reads and writes")
            state.add_metric([], found["state"])
            cache = _gauge("kv_bytes_per_token", "KV cache of one token of context, which a step reads")
            cache.add_metric([], found["kv"])
            yield from (reads, state, cache)
        tokens = self.client and self.client.vllm_config.cache_config.kv_cache_size_tokens
        if tokens:
            room = _gauge("kv_cache_tokens", "Tokens that the KV cache has room for")
            room.add_metric([], tokens)
            yield room
        if "device" in found:
            device = found["device"]
            rate = _gauge(
                "device_read_bytes_per_second", "What a kernel gets that only reads", "device", "source"
            )
            rate.add_metric([device["name"], device["source"]], device["rate"])
            yield rate

    def _well(self) -> Iterable[Metric]:
        seen = self._canaries
        count = CounterMetricFamily("gb10_canaries", "Canaries that brought an answer", labels=["verdict"])
        count.add_metric(["passed"], seen.passed)
        count.add_metric(["failed"], seen.failed)
        yield count
        if seen.last is not None:
            at = _gauge("canary_timestamp_seconds", "When the last canary ended, since 1970")
            at.add_metric([], seen.at)
            took = _gauge("canary_duration_seconds", "How long the last canary took")
            took.add_metric([], seen.last.seconds)
            passed = _gauge("canary_passed", "1 where the last canary found nothing wrong")
            passed.add_metric([], seen.last.fault is None)
            yield from (at, took, passed)
            if seen.last.apart is not None:
                apart = _gauge("canary_apart_ratio", "How far decode and prefill differed, 0 to 1")
                apart.add_metric([], seen.last.apart)
                yield apart
        if self.client is not None:
            well = _gauge("healthy", "1 while /health is green")
            well.add_metric([], self._health.reason is None and not self.client.errored)
            yield well


def _gauge(name: str, words: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"gb10_{name}", words, labels=labels)


class Exposition:
    """What a scrape gets: vLLM's registry and ours, one behind the other."""

    def __init__(self, theirs: CollectorRegistry, ours: Ours) -> None:
        self._theirs, self._ours = theirs, CollectorRegistry()
        self._ours.register(ours)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._theirs) + generate_latest(self._ours)
