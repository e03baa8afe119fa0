"""Results in the formats of others: NVIDIA's performance.yaml, and a record of inference-atlas.

Each writer says which fields of the format a measurement cannot fill: they are left for a person.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev, quantiles
from typing import Any

from gb10.bench import battery
from gb10.bench.results import Point, Request, Result
from gb10.errors import UserError
from gb10.files import replacing

Writer = Callable[[Result], tuple[str, list[str]]]
"""Makes the text of a file, and the names of the fields that are empty."""


def _gpu(result: Result) -> Mapping[str, Any]:
    return (result.about.get("machine") or {}).get("gpu") or {}


def _cuda(number: object) -> str | None:
    """13000, as the driver says it, as "13.0"."""
    return f"{number // 1000}.{number % 1000 // 10}" if isinstance(number, int) else None


def _without_empty(fields: Mapping[str, Any], path: str, empty: list[str]) -> dict[str, Any]:
    """The fields that are known; the names of the others are added to ``empty``."""
    empty += [f"{path}{name}" for name, value in fields.items() if value is None]
    return {name: value for name, value in fields.items() if value is not None}


def nvidia(result: Result) -> tuple[str, list[str]]:
    """A performance.yaml of NVIDIA's local-ai-inference-recipes, schema 1: a profile for each point."""
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise UserError(
            f"performance.yaml needs PyYAML ({error}); run: nix run .#bench -- report FILE"
        ) from None

    machine, gpu, about = result.about.get("machine") or {}, _gpu(result), result.about
    gpus = gpu.get("gpus") or []
    empty: list[str] = []
    system = {
        "label": None,
        "accelerator": gpus[0] if gpus else None,
        "accelerator_count": len(gpus) or None,
        "operating_system": "linux" if machine else None,
        "os_version": machine.get("os"),
        "driver_version": gpu.get("driver"),
        "cuda_version": _cuda(gpu.get("cuda")),
    }
    software = {"backend_version": about.get("server"), "model_revision": None, "runtime_revision": None}
    head = {"schema_version": 1, "status": None, "recipe_sha256": None, "launch_id": None}
    content = {
        **_without_empty(head, "", empty),
        "measured_at": str(about.get("began"))[:10],
        "harness": {"name": "gb10 bench", "version": str(about.get("gb10"))},
        "system": _without_empty(system, "system.", empty),
        "software": _without_empty(software, "software.", empty),
        "profiles": [_profile(point, result) for point in result.points],
    }
    note = f"# Measured by gb10 bench. Left for a person: {', '.join(empty)}.\n"
    return note + yaml.safe_dump(content, sort_keys=False, allow_unicode=True), empty


def _profile(point: Point, result: Result) -> dict[str, Any]:
    lengths = [request.input_tokens for request in point.requests]
    workload = {
        "input_tokens": point.input_tokens,
        "context_tokens": result.about.get("context"),
        "dataset": f"gb10 battery {result.settings.get('battery')}",
        "profile": point.text,
        "input_tokens_min": min(lengths),
        "input_tokens_max": max(lengths),
        "input_tokens_total": sum(lengths),
        "output_tokens": point.output_tokens,
        "concurrency": point.concurrency,
        "requests": len(lengths),
        "warmup_requests": point.concurrency,
    }
    results = {
        "prefill_tokens_per_second_mean": round(fmean(r.prefill_rate for r in point.requests), 2),
        "decode_tokens_per_second_mean": round(fmean(r.decode_rate for r in point.requests), 2),
        "e2e_latency_ms_mean": round(1e3 * fmean(r.seconds for r in point.requests), 2),
    }
    known = {name: value for name, value in workload.items() if value is not None}
    return {"id": point.label.replace(" x ", "-x"), "workload": known, "results": results}


def atlas(result: Result) -> tuple[str, list[str]]:
    """A record of inference-atlas, schema 1, of kind sweep: a point of it for each of ours.

    Its identifiers come out of that project's own registry and hash, and its owner is a login: they are null.
    """
    machine, gpu, about = result.about.get("machine") or {}, _gpu(result), result.about
    ids = dict.fromkeys(("run_id", "config_id", "cell_id", "args_canonical"))
    count = len(gpu.get("gpus") or []) or 1
    host = {
        "cpu": machine.get("cpu"),
        "cpu_cores": machine.get("cores"),
        "ram_gb": round(machine["memory_bytes"] / 1e9, 1) if machine else None,
        "os": machine.get("os"),
        "kernel": machine.get("kernel"),
        "arch": machine.get("arch"),
    }
    record = {
        "schema_version": 1,
        **ids,
        "workload_id": f"gb10-battery-{result.settings.get('battery')}",
        "kind": "sweep",
        "engine": {"id": "vllm", "version": about.get("server"), "commit": about.get("commit")},
        "model": {"id": None, "quant_id": None, "revision": None},
        "hardware": {
            "id": None,
            "count": count,
            "driver": gpu.get("driver"),
            "cuda": _cuda(gpu.get("cuda")),
            "host": host,
        },
        "args": {},
        "serve_command": None,
        "workload": {
            "id": f"gb10-battery-{result.settings.get('battery')}",
            "resolved_params": dict(result.settings),
        },
        "metrics": None,
        "sweep": [_sweep(point) for point in result.points],
        "failures": [],
        "raw": {"harness": "gb10 bench", "harness_version": str(about.get("gb10"))},
        "provenance": {
            "github_login": None,
            "started_at": about.get("began"),
            "finished_at": about.get("ended"),
            "method": "manual",
            "notes": f"served model name: {about.get('model')}",
        },
        "verification": {"level": "self-reported"},
    }
    empty = [
        *ids,
        "model.id",
        "model.quant_id",
        "hardware.id",
        "args",
        "serve_command",
        "provenance.github_login",
    ]
    empty += [] if about.get("server") else ["engine.version"]
    return json.dumps(record, indent=2) + "\n", empty


def _sweep(point: Point) -> dict[str, Any]:
    return {
        "concurrency": point.concurrency,
        "input_tokens": point.input_tokens,
        "output_tokens": point.output_tokens,
        "num_requests": len(point.requests),
        "label": point.label,
        "metrics": _metrics(point),
    }


def _metrics(point: Point) -> dict[str, Any]:
    requests, drafts = point.requests, point.drafts
    seconds = sum(repeat.seconds for repeat in point.repeats)
    tokens_in, tokens_out = (
        sum(getattr(r, f"{way}_tokens") for r in requests) for way in ("input", "output")
    )
    watts, peaks = point.powers(lambda said: said.watts), point.powers(lambda said: said.watts_peak)
    degrees = point.powers(lambda said: said.temperature)
    return {
        "requests_total": len(requests),
        "requests_ok": len(requests),
        "requests_failed": 0,
        "success_rate": 1.0,
        "duration_s": seconds,
        "output_tokens_total": tokens_out,
        "input_tokens_total": tokens_in,
        "output_tok_s": tokens_out / seconds,
        "total_tok_s": (tokens_in + tokens_out) / seconds,
        "req_s": len(requests) / seconds,
        "prefill_tok_s": point.spread("prefill").median if point.text == battery.LONG else None,
        "ttft_ms": _distribution(requests, lambda r: 1e3 * r.first_token),
        "tpot_ms": _distribution(requests, lambda r: 1e3 / r.decode_rate),
        "itl_ms": _summary([1e3 * gap for request in requests for gap in request.between]),
        "e2e_ms": _distribution(requests, lambda r: 1e3 * r.seconds),
        "decode_tok_s_per_request": _distribution(requests, lambda r: r.decode_rate),
        "power_avg_w": fmean(watts) if watts else None,
        "power_peak_w": max(peaks, default=None),
        "temp_max_c": max(degrees, default=None),
        "acceptance_rate": drafts.accepted / drafts.tokens if drafts and drafts.tokens else None,
        "accepted_tokens_per_step": drafts.length if drafts else None,
    }


def _distribution(requests: Sequence[Request], figure: Callable[[Request], float]) -> dict[str, float]:
    return _summary(list(map(figure, requests)))


def _summary(values: Sequence[float]) -> dict[str, float]:
    cuts = quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    shares = {f"p{share}": cuts[share - 1] for share in (50, 90, 95, 99)}
    return {"mean": fmean(values), **shares, "min": min(values), "max": max(values), "stddev": pstdev(values)}


WRITERS: dict[str, Writer] = {"nvidia": nvidia, "atlas": atlas}


def write(result: Result, name: str, file: Path) -> list[str]:
    """Write a file whole and give the fields that are empty. Raises UserError when it cannot be written."""
    text, empty = WRITERS[name](result)
    with replacing(file) as part:
        part.write_text(text, encoding="utf-8")
    return empty
