"""``gb10 routing``: print the routing table of this machine or of another one."""

import json
import os
import shutil
from dataclasses import asdict, replace
from typing import Annotated

from typer import Argument, Option

from gb10 import routing
from gb10.checkpoint.folder import Checkpoint
from gb10.checkpoint.formats import read
from gb10.checkpoint.hub import locate
from gb10.checkpoint.size import decoded_token_bytes
from gb10.errors import UserError
from gb10.machine import cpu
from gb10.machine import flashinfer as ready_kernels
from gb10.machine import gpu as device
from gb10.units import parse_whole
from gb10.vllm_plugin.cpu.mode import Mode
from gb10.vllm_plugin.cuda import settings
from gb10.vllm_plugin.cuda.settings import Engine, Format

_LEAST_MAJOR = 5
"""CUDA 13 knows no older GPU, so a shorter number has lost its point: "12"."""


def parse_capability(text: str) -> routing.Capability | None:
    """``cpu`` as None, ``12.1`` and ``sm_121`` as (12, 1). Raises UserError for anything else."""
    if text.lower() == "cpu":
        return None
    major, dot, minor = text.partition(".")
    if not dot:
        digits = text.lower().removeprefix("sm_").removesuffix("a").removesuffix("f")
        major, minor = digits[:-1], digits[-1:]
    try:
        capability = parse_whole(major), parse_whole(minor)
        if capability[0] < _LEAST_MAJOR:
            raise ValueError(text)
    except ValueError:
        raise UserError(
            f"--capability {text!r} is neither cpu nor a compute capability such as 12.1"
        ) from None
    return capability


def _live(*, as_json: bool) -> int:
    """What ran in each running server, by its log. Raises UserError where none runs."""
    from gb10.serve.environment import log_folder
    from gb10.serve.scratch import running_logs

    logs = running_logs(log_folder(os.environ))
    if not logs:
        raise UserError(
            "--live: no `gb10 serve` of this user runs here with the same XDG_STATE_HOME; start one, or "
            "leave out --live"
        )
    servers = []
    for path in logs:
        with path.open(errors="replace") as lines:
            servers.append((str(path), routing.report(routing.told(lines))))
    if as_json:
        print(json.dumps([{"log": name, **found.as_json()} for name, found in servers], indent=2))
        return 0
    for name, found in servers:
        print("\n".join([name, *(f"  {line}" for line in found.lines)]))
    return 0


_GB10_READ = 233e9
"""Bytes a second that a GB10's memory gives (docs/quality.md)."""


def _decode(checkpoint: Checkpoint, target: routing.Target) -> str:
    """What one sequence's next token reads, and how long that takes a GB10 at the least."""
    forms = routing.requantised(checkpoint, target, 2) if target.parts else {}
    size = decoded_token_bytes(checkpoint.tensors, checkpoint.config, formats=forms)
    milliseconds = size / _GB10_READ * 1e3
    return (
        f"a decoded token reads {size / 1e9:.3g} GB of weights; predicted for a GB10, not measured: at least "
        f"{milliseconds:.3g} ms, at most {1e3 / milliseconds:.3g} tokens a second for one sequence"
    )


def run(
    model: Annotated[
        str | None, Argument(metavar="[MODEL]", help="a checkpoint: only what it has, in its formats")
    ] = None,
    capability: Annotated[
        str | None,
        Option(metavar="CC", help="cpu, or a compute capability; default: this machine", show_default=False),
    ] = None,
    flashinfer: Annotated[bool | None, Option(help="as if FlashInfer were usable, or not")] = None,
    cpu_mode: Annotated[Mode, Option(help="NVFP4 mode on CPU")] = Mode.DEQUANT,
    fp8_kv_cache: Annotated[bool, Option("--fp8-kv-cache", help="as with --kv-cache-dtype fp8")] = False,
    engine: Annotated[
        Engine | None, Option(help="as with serve --engine; default: as it would be here", show_default=False)
    ] = None,
    dense: Annotated[Format, Option(help="as with serve --dense")] = Format.FP8,
    head: Annotated[Format, Option(help="as with serve --head")] = Format.FP8,
    routes: Annotated[
        list[str] | None, Option("--route", metavar="OP=BACKEND", help="as serve --route")
    ] = None,
    flags: Annotated[bool, Option("--flags", help="print what forces each backend by hand")] = False,
    as_json: Annotated[bool, Option("--json", help="print JSON")] = False,
    of_servers: Annotated[
        bool, Option("--live", help="what ran in this user's servers with the same XDG_STATE_HOME")
    ] = False,
) -> int:
    """Print which backend runs each operation, whose choice it is, and why."""
    if of_servers:
        others = (model, capability, flashinfer, engine, *(routes or ()))
        plain = (cpu_mode, dense, head) == (Mode.DEQUANT, Format.FP8, Format.FP8)
        if any(one is not None for one in others) or not plain or fp8_kv_cache or flags:
            raise UserError("--live says what runs: MODEL and the other options but --json do not go with it")
        return _live(as_json=as_json)
    if capability is None:
        gpus = device.detect_gpus()
        found = gpus[0].capability if gpus else None
    else:
        found = parse_capability(capability)
    if engine is None:
        engine = Engine.GB10 if settings.unfit(found) is None else Engine.STOCK
    ours = engine is Engine.GB10
    if ours and (why := settings.without_code(found)) is not None:
        raise UserError(f"--engine gb10: {why}")
    if flashinfer is None:
        fits = found is not None and ready_kernels.fits([found])
        flashinfer = ready_kernels.usable(ready=fits)
    target = routing.Target(
        found,
        found is not None and flashinfer,
        cpu_mode,
        amx=found is None and cpu.has_amx(),
        kv_cache="fp8" if fp8_kv_cache else "auto",
        parts=tuple(settings.Part) if ours else (),
        dense=dense if ours else Format.KEEP,
        head=head if ours else Format.KEEP,
    )
    parts, experts, checkpoint = None, None, None
    if model is not None:
        checkpoint = locate(model, tokenizer=False)
        formats = read(checkpoint)
        formats.check(checkpoint.name)
        parts, experts = routing.parts_of(checkpoint, formats), checkpoint.experts
        target = replace(target, dtype=formats.model_dtype)
        if not fp8_kv_cache and formats.kv_cache != "auto":
            target = replace(target, kv_cache=formats.kv_cache, kv_cache_of_checkpoint=True)
    overrides = routing.parse_overrides(routes or (), target, experts)
    if overrides.cpu_mode is not None:
        target = replace(target, cpu_mode=overrides.cpu_mode)
    target = routing.leave_to_vllm(target, overrides.backends)
    rows = routing.apply_overrides(routing.table(target, parts), overrides)
    if as_json:
        print(json.dumps({"target": asdict(target), "routes": [asdict(row) for row in rows]}, indent=2))
        return 0
    print(f"{target}\n")
    print(routing.render(rows, min(shutil.get_terminal_size().columns, 100)))
    if checkpoint is not None and found is not None and checkpoint.tensors:
        print(f"\n{_decode(checkpoint, target)}")
    if flags:
        print("\nforce with:")
        for row in rows:
            if row.flag:
                print(f"  {row.operation:<18}{row.flag}")
    return 0
