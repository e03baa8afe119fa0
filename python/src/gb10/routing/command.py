"""``gb10 routing``: print the routing table of this machine or of another one."""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict

from gb10 import routing
from gb10.arguments import Parser
from gb10.errors import UserError
from gb10.machine import gpu as device


def parse_capability(text: str) -> routing.Capability | None:
    """``cpu`` as None, ``12.1`` and ``sm_121`` as (12, 1). Raises UserError for anything else."""
    if text.lower() == "cpu":
        return None
    major, dot, minor = text.partition(".")
    if not dot:
        digits = text.lower().removeprefix("sm_").removesuffix("a").removesuffix("f")
        major, minor = digits[:-1], digits[-1:]
    if not (major.isdigit() and minor.isdigit()):
        raise UserError(f"--capability {text!r} is neither cpu nor a compute capability such as 12.1")
    return int(major), int(minor)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="gb10 routing", allow_abbrev=False, description="Print which backend runs each operation."
    )
    parser.add_argument(
        "--capability", metavar="CC", help="cpu, or a compute capability; default: this machine"
    )
    parser.add_argument(
        "--flashinfer", action=argparse.BooleanOptionalAction, help="as if FlashInfer were usable, or not"
    )
    parser.add_argument(
        "--cpu-mode", choices=routing.CPU_MODES, default=routing.CPU_MODES[0], help="NVFP4 mode on CPU"
    )
    parser.add_argument("--fp8-kv-cache", action="store_true", help="as with --kv-cache-dtype fp8")
    parser.add_argument("--route", action="append", default=[], metavar="OP=BACKEND", help="as serve --route")
    parser.add_argument("--flags", action="store_true", help="print what forces each backend by hand")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run ``gb10 routing``; returns 0. Raises UserError for bad arguments."""
    arguments = _parser().parse_args(argv)
    if arguments.capability is None:
        gpus = device.detect_gpus()
        capability = gpus[0].capability if gpus else None
    else:
        capability = parse_capability(arguments.capability)
    flashinfer = device.flashinfer_usable() if arguments.flashinfer is None else arguments.flashinfer
    target = routing.Target(
        capability=capability,
        flashinfer=capability is not None and flashinfer,
        cpu_mode=arguments.cpu_mode,
        fp8_kv_cache=arguments.fp8_kv_cache,
    )
    overrides = routing.parse_overrides(arguments.route, target)
    if overrides.cpu_mode is not None:
        target = routing.Target(cpu_mode=overrides.cpu_mode, fp8_kv_cache=target.fp8_kv_cache)
    rows = routing.apply_overrides(routing.table(target), overrides)
    if arguments.json:
        print(json.dumps({"target": asdict(target), "routes": [asdict(row) for row in rows]}, indent=2))
        return 0
    print(f"{target}\n")
    print(routing.render(rows, min(shutil.get_terminal_size().columns, 100)))
    if arguments.flags:
        print("\nforce with:")
        for row in rows:
            if row.flag:
                print(f"  {row.operation:<18}{row.flag}")
    return 0
