"""gb10::nvfp4_gemv without a GPU: schema, refusals, fake tensors, machine code, the kernel on the CPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import on_the_host
import pytest

SCHEMA = (
    "gb10::nvfp4_gemv(Tensor x, Tensor weight, Tensor scales, Tensor global_scale, Tensor? bias, "
    "bool swizzled, Tensor(a!) out) -> ()"
)

Arguments = dict[str, Any]


@pytest.fixture
def good(operators: None) -> Arguments:
    """Arguments that only their device speaks against."""
    import torch

    return {
        "x": torch.zeros(2, 128, dtype=torch.bfloat16),
        "weight": torch.zeros(24, 64, dtype=torch.uint8),
        "scales": torch.zeros(24, 8, dtype=torch.float8_e4m3fn),
        "global_scale": torch.ones(1),
        "bias": torch.zeros(24, dtype=torch.bfloat16),
        "swizzled": False,
        "out": torch.zeros(2, 24, dtype=torch.bfloat16),
    }


def refusal(arguments: Arguments) -> str:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.ops.gb10.nvfp4_gemv(*arguments.values())
    lines: list[str] = str(caught.value).splitlines()
    return next(line for line in lines if "gb10::nvfp4_gemv:" in line)


def test_schema(operators: None) -> None:
    import torch

    assert str(torch.ops.gb10.nvfp4_gemv.default._schema) == SCHEMA


def test_a_cpu_tensor_is_refused_last(good: Arguments) -> None:
    assert "x is not on a CUDA device" in refusal(good)
    assert "x is not on a CUDA device" in refusal({**good, "bias": None})


def aside(tensor: Any) -> Any:
    """The same values, two bytes away from a multiple of 16."""
    import torch

    memory = torch.zeros(tensor.numel() * tensor.element_size() + 16, dtype=torch.uint8)
    start = (2 - memory.data_ptr()) % 16
    piece = memory[start : start + tensor.numel() * tensor.element_size()]
    return piece.view(tensor.dtype).view(tensor.shape)


BAD: list[tuple[str, Callable[[Any], Any], str]] = [
    ("x", lambda t: t.float(), "x is float32; it must be bfloat16 or float16"),
    ("x", lambda t: t.half(), "bias is bfloat16; it must be float16"),
    ("weight", lambda t: t.int(), "weight is int32; it must be uint8"),
    (
        "scales",
        lambda t: t.view(dtype=t.float().bfloat16().dtype),
        "scales is bfloat16; it must be float8_e4m3fn",
    ),
    ("global_scale", lambda t: t.double(), "global_scale is float64; it must be float32"),
    ("out", lambda t: t.half(), "out is float16; it must be bfloat16"),
    ("x", lambda t: t[0], "x has shape [128]; it must be [any, any]"),
    ("x", lambda t: t[:0], "x has 0 rows (tokens); it must have 1 to 16"),
    ("x", lambda t: t.repeat(9, 1), "x has 18 rows (tokens); it must have 1 to 16"),
    ("x", lambda t: t[:, :96].contiguous(), "x has 96 columns (K); K must be a multiple of 64"),
    ("x", lambda t: t[:, :0], "x has 0 columns (K); K must be a multiple of 64"),
    ("x", lambda t: t.repeat(1, 321), "x has 41088 columns (K); K must be a multiple of 64, at most 32768"),
    ("x", lambda t: t[:, :64].contiguous(), "weight has shape [24, 64]; it must be [24, 32]"),
    ("weight", lambda t: t[:0], "weight has 0 rows (N) of 64 bytes; N must be at least 1"),
    ("weight", lambda t: t[None], "weight has shape [1, 24, 64]; it must be [any, any]"),
    ("scales", lambda t: t[:23], "scales has shape [23, 8]; it must be [24, 8]"),
    ("swizzled", lambda t: True, "scales has shape [24, 8]; it must be [128, 8]"),
    ("global_scale", lambda t: t.repeat(2), "global_scale has shape [2]; it must have one element"),
    ("bias", lambda t: t[:-1], "bias has shape [23]; it must be [24]"),
    ("out", lambda t: t[:1], "out has shape [1, 24]; it must be [2, 24]"),
    ("x", lambda t: t.T.contiguous().T, "x is not contiguous"),
    ("weight", lambda t: t.T.contiguous().T, "weight is not contiguous"),
    ("out", lambda t: t.T.contiguous().T, "out is not contiguous"),
    ("x", aside, "x does not begin at a multiple of 16 bytes"),
    ("weight", aside, "weight does not begin at a multiple of 16 bytes"),
    ("scales", aside, "scales does not begin at a multiple of 4 bytes"),
]


@pytest.mark.parametrize(("name", "spoil", "said"), BAD, ids=[said for _, _, said in BAD])
def test_refuses_by_name(good: Arguments, name: str, spoil: Callable[[Any], Any], said: str) -> None:
    assert said in refusal({**good, name: spoil(good[name])})


def test_fake_tensors_pass_and_give_the_shape(good: Arguments) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from gb10.kernels.nvfp4_gemv import nvfp4_gemv

    with pytest.raises(RuntimeError, match="not on a CUDA device"):
        nvfp4_gemv(good["x"], good["weight"], good["scales"], good["global_scale"])
    with FakeTensorMode() as mode:
        y = nvfp4_gemv(*(mode.from_tensor(good[name]) for name in ("x", "weight", "scales", "global_scale")))
    assert tuple(y.shape) == (2, 24) and y.dtype == good["x"].dtype


def test_machine_code(machine_code: dict[str, list[str]]) -> None:
    """Wide copies of weights, the first tiles before the wait, no local memory, matrix instructions.

    E2M1 is decoded by the instruction where the target has it. Where the first tile is decoded ahead of the
    activations, that stands before the wait for them; the others are decoded while the one before is
    multiplied, and the last one has no next.
    """
    kernels = {name: code for name, code in machine_code.items() if "nvfp4_gemv4gemv" in name}
    assert len(kernels) % 12 == 0 and kernels
    for name, code in kernels.items():
        groups, ahead = "Li2E" in name, re.search(r"Lb[01]ELb1EEE", name) is not None
        wait = next(i for i, line in enumerate(code) if "ACQBULK" in line)
        wide = [i for i, line in enumerate(code) if "LDGSTS.E" in line and ".128" in line]
        assert len(wide) == (12 if ahead else 8) and sum(i < wait for i in wide) == (8 if ahead else 4), name
        assert not [line for line in code if re.search(r"\b(LDL|STL)\b", line)], name
        matrix = [i for i, line in enumerate(code) if "HMMA.16816.F32" in line]
        assert len(matrix) == 16 * (1 + groups + ahead) and min(matrix) > wait, name
        scaled = [i for i, line in enumerate(code) if "HMUL2" in line]
        assert len(scaled) >= 64 and (sum(i < wait for i in scaled) >= 64) == ahead, name
        decoded = [line for line in code if "E2M1.UNPACK_B" in line]
        assert len(decoded) == (64 * (1 + ahead) if name.startswith("sm_120") else 0), name


@pytest.mark.parametrize("decodes", [False, True])
def test_the_kernel_on_the_cpu(tmp_path: Path, toolkit: Path, decodes: bool) -> None:
    """All indices, splits, barriers and tails, for targets without and with the instruction that decodes."""
    printed = on_the_host.run("nvfp4_gemv", tmp_path, toolkit, decodes=decodes)
    assert re.search(r"[1-9]\d* runs, 0 wrong", printed)
