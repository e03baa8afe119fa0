"""``python -m gb10_lab.kernel_bench --out FOLDER [--only NAME ...] [--quick]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gb10.files import read_json

from gb10_lab.kernel_bench import report

if TYPE_CHECKING:
    from gb10_lab.kernel_bench import suite

OPERATORS = (
    "nvfp4_gemv",
    "fp8_gemv",
    "moe_decode",
    "sparse24_gemv",
    "quantize_nvfp4",
    "silu_mul_quantize_nvfp4",
)
CHAIN = "chain"
CHOICES = (*OPERATORS, CHAIN)
CHAIN_NEEDS = ("nvfp4_gemv", "moe_decode")
EXIT_BAD_INPUT = 2
EXIT_FAILED = 1
H200_READ_GBPS = 4300.0
H200_LAUNCH_US = 1.75


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit status is 0, 1 when a kernel was wrong, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="gb10_lab.kernel_bench", description="Measures our kernels and the stock ones on this GPU."
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where results.json, table.txt, roofline.png go"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        default=CHOICES,
        choices=CHOICES,
        help="operators, or chain: all layers",
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer shapes and shorter timings, under a minute"
    )
    parser.add_argument("--commit", default="unknown", help="what is measured, for the records")
    parser.add_argument(
        "--floors", action="store_true", help="print the floors as Markdown and measure nothing"
    )
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="a results.json: tell which times are others here"
    )
    options = parser.parse_args(arguments)
    if options.floors:
        print("\n".join(report.floors(H200_READ_GBPS, H200_LAUNCH_US)))
        return 0
    if options.out is None:
        return _refuse("--out is missing; name the folder for the results")
    try:
        import torch
    except ImportError as error:
        return _refuse(f"torch cannot be imported ({error}); install it")
    if not torch.cuda.is_available():
        return _refuse("there is no CUDA GPU here; run this on a machine that has one")
    return _measure(options, sys.argv[1:] if arguments is None else arguments)


def _refuse(why: str) -> int:
    print(f"gb10_lab.kernel_bench: error: {why}", file=sys.stderr)
    return EXIT_BAD_INPUT


def _measure(options: argparse.Namespace, arguments: list[str]) -> int:
    import torch
    from gb10.errors import UserError

    from gb10_lab import record
    from gb10_lab.kernel_bench import adapters, bandwidth, stock, suite

    try:
        other = read_json(options.against) if options.against else None
        held = adapters.load()
    except UserError as error:
        return _refuse(str(error))
    torch.manual_seed(20261122)
    device = torch.device("cuda", torch.cuda.current_device())
    notes: list[str] = []
    failures: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        print(f"note: {line}", flush=True)

    why_not = stock.unavailable()
    if why_not:
        note(f"without Marlin: {why_not}")
    for name in options.only:
        if name != CHAIN and name not in held:
            note(f"{name} is not in the library")
    seconds = 0.06 if options.quick else 0.25
    measured = bandwidth.measure(device, 2 * 1024**3, 4 * seconds)
    print(f"read {measured.read_gbps:.0f} GB/s, copy {measured.copy_gbps:.0f} GB/s")
    settings = suite.Settings(
        device=device,
        l2_bytes=torch.cuda.get_device_properties(device).L2_cache_size,
        seconds=seconds,
        quick=options.quick,
        operators=tuple(name for name in options.only if name in held),
        marlin=not why_not,
        bandwidth=measured,
    )
    results = report.Results(
        device=record.machine(device),
        commit=options.commit,
        date=record.today(),
        command=record.command("gb10_lab.kernel_bench", arguments),
        quick=options.quick,
        seconds=seconds,
        stock="without vLLM" if why_not else f"vLLM {stock.vllm_version()}",
        bandwidth=measured,
        entries=[],
        failures=failures,
        notes=notes,
    )
    results.write(options.out)
    works: list[tuple[str, Callable[[], None]]] = [
        (job.name, partial(_cases, job, settings, results, note)) for job in suite.jobs(settings, note)
    ]
    if CHAIN in options.only:
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
        results.write(options.out, plot=False)
    if other is not None:
        results.changes.extend(report.changes(results.entries, results.chain, other))
    results.write(options.out)
    print(results.as_text())
    return EXIT_FAILED if failures else 0


def _cases(job: suite.Job, settings: suite.Settings, results: report.Results, note: suite.Note) -> None:
    from gb10_lab.kernel_bench import suite

    for case in job.cases():
        results.entries.append(suite.measure(case, settings, note))


def _chain(settings: suite.Settings, results: report.Results, note: suite.Note) -> None:
    from gb10_lab.kernel_bench import adapters, chain, shapes, suite

    missing = [name for name in CHAIN_NEEDS if name not in adapters.held()]
    try:
        from gb10_lab.kernel_bench import glue
    except ImportError:
        missing.append("triton")
    if missing:
        note(f"without the chain: no {', no '.join(missing)}")
        return
    for entry in chain.entries(shapes.CHAIN, suite.tokens_of(shapes.CHAIN.model, settings), glue, settings):
        results.chain.append(entry)


def _context_lost() -> bool:
    """Whether a kernel's fault has made the GPU unusable for this process."""
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
