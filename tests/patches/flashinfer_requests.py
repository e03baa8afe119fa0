"""Prints, as JSON, the modules that FlashInfer asks its loader for on a GPU, and those that the list makes.

usage: flashinfer_requests.py MAJOR.MINOR

No GPU, no compiler: the loader is replaced by one that notes a name. The calls are those that vLLM 0.32.0
makes for the operations of the list, as far down as FlashInfer's own choice of module goes.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import runpy
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

FOLDER = Path(__file__).parents[2] / "nix" / "flashinfer"


class Asked(Exception):
    """Instead of a module."""


def asked_for(calls: list[Callable[[], object]]) -> list[str]:
    """The names that the loader is asked for, one for each call."""
    core = importlib.import_module("flashinfer.jit.core")
    names: list[str] = []

    def note(spec: Any) -> None:
        names.append(spec.name)
        raise Asked

    core.JitSpecNvcc.build_and_load = note
    for call in calls:
        try:
            call()
        except Asked:
            continue
        raise AssertionError(f"{call} asked for no module")
    return names


def calls(device: str) -> list[Callable[[], object]]:
    """What vLLM calls on a GPU of 12.x: ``device`` is 120 or 121."""
    module = {
        name: importlib.import_module(f"flashinfer.{name}")
        for name in ("prefill", "xqa", "sampling", "quantization.fp4_quantization", "gemm.gemm_base")
    }
    moe = importlib.import_module("flashinfer.fused_moe.core")
    gemm = module["gemm.gemm_base"]
    bf16, caches = torch.bfloat16, (torch.bfloat16, torch.float8_e4m3fn)

    def prefill(cache: torch.dtype, head: int) -> Callable[[], object]:
        arguments = (bf16, cache, bf16, torch.int32, head, head, 0, False, False, False)
        return lambda: module["prefill"].get_batch_prefill_module("fa2", *arguments)

    def decode(cache: torch.dtype, head: int, page: int, tokens: int) -> Callable[[], object]:
        return lambda: module["xqa"].get_xqa_module(bf16, cache, page, head, 8, False, bf16, tokens)

    heads = (128, 256)
    return [
        module["sampling"].get_sampling_module,
        lambda: module["quantization.fp4_quantization"].get_fp4_quantization_module(device),
        gemm.get_gemm_sm120_module_cutlass_fp4,
        gemm.get_gemm_sm120_module,
        gemm.get_gemm_module,
        lambda: moe.get_cutlass_fused_moe_module(device),
        *itertools.starmap(prefill, itertools.product(caches, heads)),
        *itertools.starmap(decode, itertools.product(caches, heads, (16, 32, 64), range(1, 6))),
    ]


def main() -> None:
    """Print both lists."""
    major, minor = map(int, sys.argv[1].split("."))
    torch.version.cuda = "13.0"
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_device_capability = lambda *_: (major, minor)
    # Read for a GPU's memory, which nobody asks here.
    sys.modules["pynvml"] = ModuleType("pynvml")
    build = SimpleNamespace(**runpy.run_path(str(FOLDER / "build.py")))
    listed = tomllib.loads((FOLDER / "modules.toml").read_text())
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FLASHINFER_WORKSPACE_BASE"] = scratch
        build.import_build_code()
        made = [spec.name for group in listed["groups"].values() for spec in build.specs_of(group)]
        print(json.dumps({"asked": asked_for(calls(f"{major}{minor}")), "made": made}))


if __name__ == "__main__":
    main()
