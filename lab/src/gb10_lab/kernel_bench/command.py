"""Command line: `python -m gb10_lab kernel-bench --out FOLDER [--only NAME ...] [--quick]`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from typer import Option

from gb10.errors import EXIT_FAILED, UserError
from gb10.files import read_json
from gb10_lab import record
from gb10_lab.kernel_bench import adapters, bandwidth, chain, report, shapes, stock, suite

CHAIN = "chain"
CHAIN_NEEDS = ("nvfp4_gemv", "moe_decode")
CHAIN_ROUTER = "route_experts"
"""With it there is a second chain, the fused one."""
CHOICES = (*adapters.OPERATORS, CHAIN)
H200_READ_GBPS = 4300.0
H200_LAUNCH_US = 1.75


def run(
    out: Annotated[
        Path | None,
        Option(metavar="FOLDER", help="where results.json, table.txt and roofline.png go"),
    ] = None,
    only: Annotated[
        list[str] | None, Option(metavar="NAME...", help=f"some of {', '.join(CHOICES)}: all layers")
    ] = None,
    quick: Annotated[
        bool, Option("--quick", help="fewer shapes and shorter timings, under a minute")
    ] = False,
    against: Annotated[
        Path | None, Option(metavar="FILE", help="a results.json: tell which times are others here")
    ] = None,
    commit: Annotated[str, Option(metavar="NAME", help="what is measured, for the record")] = "unknown",
    floors: Annotated[
        bool, Option("--floors", help="print the floors as Markdown and measure nothing")
    ] = False,
) -> int:
    """Measure our kernels and the stock ones on this GPU. The exit status is 1 when a kernel was wrong."""
    if floors:
        print("\n".join(report.floors(H200_READ_GBPS, H200_LAUNCH_US)))
        return 0
    chosen = only or CHOICES
    for name in chosen:
        if name not in CHOICES:
            raise UserError(f"--only {name}: choose from {', '.join(CHOICES)}")
    if out is None:
        raise UserError("--out is missing; name the folder for the results")
    other = read_json(against) if against else None
    return _measure(out, chosen, quick, other, commit)


def _measure(out: Path, chosen: Sequence[str], quick: bool, other: dict[str, Any] | None, commit: str) -> int:
    device, held = adapters.ready()
    torch.manual_seed(20261122)
    notes: list[str] = []
    failures: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        print(f"note: {line}", flush=True)

    why_not = stock.unavailable()
    if why_not:
        note(f"without Marlin: {why_not}")
    for name in chosen:
        if name != CHAIN and name not in held:
            note(f"{name} is not in the library")
    seconds = 0.06 if quick else 0.25
    measured = bandwidth.measure(device, 2 * 1024**3, 4 * seconds)
    print(f"read {measured.read_gbps:.0f} GB/s, copy {measured.copy_gbps:.0f} GB/s")
    settings = suite.Settings(
        device=device,
        l2_bytes=torch.cuda.get_device_properties(device).L2_cache_size,
        seconds=seconds,
        quick=quick,
        operators=tuple(name for name in chosen if name in held),
        marlin=not why_not,
        bandwidth=measured,
    )
    results = report.Results(
        device=record.machine(device),
        commit=commit,
        date=record.today(),
        command=record.command(),
        quick=quick,
        seconds=seconds,
        stock="without vLLM" if why_not else f"vLLM {stock.vllm_version()}",
        bandwidth=measured,
        entries=[],
        failures=failures,
        notes=notes,
    )
    results.write(out)
    works: list[tuple[str, Callable[[], None]]] = [
        (job.name, partial(_cases, job, settings, results, note)) for job in suite.jobs(settings, note)
    ]
    if CHAIN in chosen:
        works.append((CHAIN, partial(_chain, settings, results, note)))
    for name, work in works:
        print(name, flush=True)
        try:
            work()
        except (RuntimeError, torch.OutOfMemoryError) as error:
            failures.append(f"{name}: {str(error).splitlines()[0]}")
            print(f"FAILED: {failures[-1]}", flush=True)
            if _context_lost():
                break
        results.write(out, plot=False)
    if other is not None:
        results.changes.extend(report.changes(results.entries, results.chain, other))
    results.write(out)
    print(results.as_text())
    return EXIT_FAILED if failures else 0


def _cases(job: suite.Job, settings: suite.Settings, results: report.Results, note: suite.Note) -> None:
    for case in job.cases():
        results.entries.append(suite.measure(case, settings, note))


def _chain(settings: suite.Settings, results: report.Results, note: suite.Note) -> None:
    missing = [name for name in CHAIN_NEEDS if name not in adapters.held()]
    if not importlib.util.find_spec("triton"):
        missing.append("triton")
    if missing:
        note(f"without the chain: no {', no '.join(missing)}")
        return
    from gb10_lab.kernel_bench import glue

    tokens = suite.tokens_of(shapes.CHAIN.model, settings)
    fused = (False, True) if CHAIN_ROUTER in adapters.held() else (False,)
    results.chain.extend(chain.entries(shapes.CHAIN, tokens, glue, settings, fused))


def _context_lost() -> bool:
    """Whether a kernel's fault has made the GPU unusable for this process."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
