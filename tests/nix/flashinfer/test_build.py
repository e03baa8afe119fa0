"""What nix/flashinfer/build.py makes of the list, and how much it compiles at once."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).parents[3] / "nix" / "flashinfer"
build = SimpleNamespace(**runpy.run_path(str(FOLDER / "build.py")))
GROUPS = tomllib.loads((FOLDER / "modules.toml").read_text())["groups"]


def test_every_member_with_every_choice() -> None:
    module = {
        "generator": "place:name",
        "arguments": {"backend": "fa2", "dtype_q": "torch.bfloat16"},
        "each": [{"head": 128}, {"head": 256, "backend": "fa3"}],
        "vary": {"dtype_kv": ["torch.bfloat16", "torch.float8_e4m3fn"], "page": [16, 32]},
    }
    bf16, fp8 = torch.bfloat16, torch.float8_e4m3fn
    assert list(build.calls(module)) == [
        {"backend": backend, "dtype_q": bf16, "head": head, "dtype_kv": kv, "page": page}
        for head, backend in ((128, "fa2"), (256, "fa3"))
        for kv in (bf16, fp8)
        for page in (16, 32)
    ]
    assert list(build.calls({"generator": "place:name"})) == [{}]


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_the_list_can_be_read(name: str) -> None:
    group = GROUPS[name]
    assert set(group) == {"routes", "gibibytes", "modules"}
    for module in group["modules"]:
        assert set(module) <= {"generator", "arguments", "each", "vary"}
        place, _, function = module["generator"].partition(":")
        assert place.startswith("flashinfer.jit.") and function.isidentifier()
        made = list(build.calls(module))
        assert made
        assert len({str(call) for call in made}) == len(made)


@pytest.mark.parametrize(
    ("gibibytes", "cores", "total", "jobs"),
    [
        (7, 2, 23, 1),  # a small machine: one, though a quarter of its memory is less than one takes
        (2, 2, 23, 2),
        (7, 20, 119, 4),  # a Spark: three groups side by side stay below 3/4
        (3, 20, 119, 9),
        (2, 20, 119, 14),
        (1, 4, 1000, 4),
    ],
)
def test_compilers_at_once(gibibytes: float, cores: int, total: float, jobs: int) -> None:
    assert build.jobs(gibibytes, cores, total) == jobs
