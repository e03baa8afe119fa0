"""gb10::add_norm without a GPU: schema, refusals, fake tensors, machine code, the kernel on the CPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import on_the_host
import pytest

Arguments = dict[str, Any]


@pytest.fixture
def good(operators: None) -> Arguments:
    """Arguments that only their device speaks against: 3 rows of 512."""
    import torch

    rows = {name: torch.zeros(3, 512, dtype=torch.bfloat16) for name in ("x", "residual", "normed", "out")}
    return {
        "x": rows["x"],
        "residual": rows["residual"],
        "weight": torch.zeros(512, dtype=torch.bfloat16),
        "epsilon": 1e-6,
        "plus_one": True,
        "normed": rows["normed"],
        "residual_out": rows["out"],
    }


def refusal(arguments: Arguments) -> str:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.ops.gb10.add_norm(*arguments.values())
    lines: list[str] = str(caught.value).splitlines()
    return next(line for line in lines if "gb10::add_norm:" in line)


def test_the_schema_names_what_is_written(good: Arguments) -> None:
    import torch

    schema = torch.ops.gb10.add_norm.default._schema
    assert [argument.name for argument in schema.arguments] == list(good)
    written = [argument.name for argument in schema.arguments if argument.alias_info is not None]
    assert written == ["normed", "residual_out"] and not schema.returns


def test_a_cpu_tensor_is_refused_last(good: Arguments) -> None:
    for change in ({}, {"residual": None, "residual_out": None}, {"plus_one": False}):
        assert "x is not on a CUDA device" in refusal({**good, **change})


BAD: list[tuple[str, Callable[[Any], Any], str]] = [
    ("x", lambda t: t.float(), "x is float32; it must be bfloat16 or float16"),
    ("residual", lambda t: t.half(), "residual is float16; it must be bfloat16"),
    ("weight", lambda t: t.half(), "weight is float16; it must be bfloat16"),
    ("x", lambda t: t[:0], "x has 0 rows (tokens); it must have 1 to"),
    ("x", lambda t: t[:, :4], "x has 4 columns (K); K must be a multiple of 8, at most 16384"),
    ("x", lambda t: t.repeat(1, 33), "x has 16896 columns (K)"),
    ("residual", lambda t: t[:2], "residual has shape [2, 512]; it must be [3, 512]"),
    ("weight", lambda t: t[:8], "weight has shape [8]; it must be [512]"),
    ("normed", lambda t: t[:2], "normed has shape [2, 512]; it must be [3, 512]"),
    ("residual_out", lambda t: t[:2], "residual_out has shape [2, 512]; it must be [3, 512]"),
    ("epsilon", lambda _: float("nan"), "epsilon is nan; it must be 0 or more"),
    ("x", lambda t: t.T.contiguous().T, "x is not contiguous"),
]


@pytest.mark.parametrize(("name", "spoil", "said"), BAD, ids=[said for _, _, said in BAD])
def test_refuses_by_name(good: Arguments, name: str, spoil: Callable[[Any], Any], said: str) -> None:
    assert said in refusal({**good, name: spoil(good[name])})


def test_fake_tensors_pass_and_give_the_shape(good: Arguments) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from gb10.kernels.add_norm import add_norm

    with FakeTensorMode() as mode:
        x, residual, weight = (mode.from_tensor(good[name]) for name in ("x", "residual", "weight"))
        results = add_norm(x, residual, weight, 1e-6, plus_one=True)
    assert all(tuple(y.shape) == (3, 512) and y.dtype == x.dtype for y in results)


def test_machine_code(machine_code: dict[str, list[str]]) -> None:
    """The weight is read before the wait, 16 bytes wide; no stack."""
    kernels = {name: code for name, code in machine_code.items() if "8add_norm" in name}
    assert len(kernels) in (8, 16)  # a route's targets
    for name, code in kernels.items():
        wait = next(i for i, line in enumerate(code) if "ACQBULK" in line)
        wide = [i for i, line in enumerate(code) if re.search(r"LDG\.E\S*\.128", line)]
        assert wide and min(wide) < wait < max(wide), name
        assert not [line for line in code if re.search(r"\b(LDL|STL)\b", line)], name


def test_the_kernel_on_the_cpu(tmp_path: Path, toolkit: Path) -> None:
    printed = on_the_host.run("add_norm", tmp_path, toolkit)
    assert re.search(r"[1-9]\d* runs, 0 wrong", printed)
