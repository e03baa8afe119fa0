"""The constants of gb10's own engine on a GB10: of its profile on an H200. No GB10 has run it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gb10.predict.architecture import architectures
from gb10.predict.cost import Constants
from gb10.predict.step import READS, Sizes, sizes_of

_H200_READ = 4.27e12
"""Bytes a second that a read kernel had on the H200 of that profile."""

_GB10_READ = 233e9
_SHARE = 0.94
"""Of the memory's read rate: what nvfp4_gemv's streaming shape has on an H200 (docs/kernels.md)."""

_MODEL = "qwen3-next-80b-a3b"
_PIECES: Mapping[str, tuple[str, ...]] = {
    "matrix": ("gemv<",),
    "expert layer": ("gate_up_one<", "down<", "route<"),
    "GDN layer": ("decode<",),
    "attention layer": ("device_kernel<flash::", "front<", "gate<"),
    "launch": ("add_norm<",),
}


def _bytes(kind: str, sizes: Sizes) -> float:
    """What the kernels of a kind read in the profiled step."""
    experts = sizes.expert * sizes.chosen
    model = architectures()[_MODEL]
    values = {part: count for part, (_, count) in model.matrices().items()}
    beside = values["shared"] * 4.5 / 8 + values["router"] * 2
    if kind == "matrix":
        return sum(sizes.weights.values()) - beside - sizes.head
    return {"expert layer": experts + beside, "GDN layer": sizes.state}.get(kind, 0.0)


def ours(results: Path, stock: Constants) -> Constants:
    """The constants, from the file of engine-bench's results.

    A kernel's piece is its time on the path less its bytes at that GPU's read rate, and is taken to last as
    long on a GB10. What is outside of the graph is stock's, as is reading the KV cache.

    Args:
        results: The file, with the profile of ``ours-nvfp4``.
        stock: The fitted constants of vLLM.
    """
    runs: list[dict[str, Any]] = json.loads(results.read_text())["runs"]
    run = next(run for run in runs if run["configuration"]["name"] == "ours-nvfp4" and "profile" in run)
    profile = next(one for one in run["profile"] if one["batch"] == 1)
    model = architectures()[_MODEL]
    sizes = sizes_of(model, {"dense": "nvfp4", "experts": "nvfp4", "head": "nvfp4", "gdn_gates": "nvfp4"})
    counts = {
        "matrix": 2 * sizes.layers,
        "expert layer": sizes.moe,
        "GDN layer": sizes.gdn,
        "attention layer": sizes.attention,
        "launch": sizes.layers,
    }
    pieces = {"step": stock.pieces["step"]}
    for kind, names in _PIECES.items():
        path = sum(
            kernel["path_microseconds"] * 1e-6
            for kernel in profile["kernels"]
            if kernel["in_graph"] and kernel["name"].startswith(names)
        )
        pieces[kind] = (path - _bytes(kind, sizes) / _H200_READ) / counts[kind]
    rates = dict.fromkeys(READS, _SHARE * _GB10_READ)
    return replace(stock, rates=rates | {READS[4]: stock.rates[READS[4]]}, pieces=pieces, stacks={})
