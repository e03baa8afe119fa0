"""gb10::fp8_gemv without a GPU: the kernel on the CPU, schema, refusals by name, machine code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import on_the_host
import pytest

SCHEMA = "gb10::fp8_gemv(Tensor x, Tensor weight, Tensor scales, Tensor? bias, Tensor(a!) out) -> ()"

Arguments = dict[str, Any]


@pytest.fixture
def good(operators: None) -> Arguments:
    """Arguments that only their device speaks against."""
    import torch

    return {
        "x": torch.zeros(2, 192, dtype=torch.bfloat16),
        "weight": torch.zeros(300, 192, dtype=torch.float8_e4m3fn),
        "scales": torch.ones(300),
        "bias": torch.zeros(300, dtype=torch.bfloat16),
        "out": torch.zeros(2, 300, dtype=torch.bfloat16),
    }


def refusal(arguments: Arguments) -> str:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.ops.gb10.fp8_gemv(*arguments.values())
    return next(line for line in str(caught.value).splitlines() if "gb10::fp8_gemv:" in line)


def test_schema(operators: None) -> None:
    import torch

    assert str(torch.ops.gb10.fp8_gemv.default._schema) == SCHEMA


def test_a_cpu_tensor_is_refused_last(good: Arguments) -> None:
    import torch

    assert "x is not on a CUDA device" in refusal(good)
    assert "x is not on a CUDA device" in refusal({**good, "bias": None})
    for shape in [(300, 1), (3, 2)]:
        assert "x is not on a CUDA device" in refusal({**good, "scales": torch.ones(shape)})


def shifted(tensor: Any) -> Any:
    """The same shape, one element into its memory."""
    import torch

    return torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)[1:].reshape(tensor.shape)


BAD: list[tuple[str, Callable[[Any], Any], str]] = [
    ("x", lambda t: t.float(), "x is float32; it must be bfloat16 or float16"),
    ("x", lambda t: t.half(), "bias is bfloat16; it must be float16"),
    ("weight", lambda t: t.float(), "weight is float32; it must be float8_e4m3fn"),
    ("scales", lambda t: t.half(), "scales is float16; it must be float32"),
    ("out", lambda t: t.float(), "out is float32; it must be bfloat16"),
    ("x", lambda t: t[0], "x has shape [192]; it must be [any, any]"),
    ("x", lambda t: t[:0], "x has 0 rows (tokens); it must have 1 to 16"),
    ("x", lambda t: t.new_zeros(17, 192), "x has 17 rows (tokens); it must have 1 to 16"),
    ("x", lambda t: t.new_zeros(2, 96), "x has 96 columns (K); K must be a multiple of 64"),
    ("x", lambda t: t.new_zeros(2, 0), "x has 0 columns (K); K must be a multiple of 64"),
    ("weight", lambda t: t[:0], "weight has 0 rows (N)"),
    ("weight", lambda t: t[:, :128], "weight has shape [300, 128]; it must be [300, 192]"),
    ("scales", lambda t: t[:299], "scales has shape [299]; it must be [300] or [300, 1]"),
    ("scales", lambda t: t.new_ones(2, 2), "or [3, 2] (one a block of 128 x 128)"),
    ("scales", lambda t: t.new_ones(()), "scales has shape []"),
    ("bias", lambda t: t[:1], "bias has shape [1]; it must be [300]"),
    ("out", lambda t: t[:1], "out has shape [1, 300]; it must be [2, 300]"),
    ("x", lambda t: t.t().contiguous().t(), "x is not contiguous"),
    ("weight", lambda t: t.t().contiguous().t(), "weight is not contiguous"),
    ("scales", lambda t: t.new_ones(600)[::2], "scales is not contiguous"),
    ("x", shifted, "x does not begin at a multiple of 16 bytes"),
    ("weight", shifted, "weight does not begin at a multiple of 16 bytes"),
]


@pytest.mark.parametrize(("name", "change", "words"), BAD, ids=[f"{name}: {words}" for name, _, words in BAD])
def test_bad_arguments_are_refused_by_name(
    name: str, change: Callable[[Any], Any], words: str, good: Arguments
) -> None:
    assert words in refusal({**good, name: change(good[name])})


def test_the_fake_gives_shapes(operators: None) -> None:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from gb10.kernels.fp8_gemv import fp8_gemv

    with FakeTensorMode():
        x = torch.empty(3, 128, dtype=torch.float16)
        y = fp8_gemv(x, torch.empty(40, 128).to(torch.float8_e4m3fn), torch.empty(40))
    assert y.shape == (3, 40) and y.dtype == torch.float16


def test_the_kernel_on_the_cpu(tmp_path: Path, toolkit: Path) -> None:
    """The kernel's own source, thread by thread (host/block.h): all indices, splits, barriers and tails."""
    assert "36 runs, 0 wrong" in on_the_host.run("fp8_gemv", tmp_path, toolkit)


def test_machine_code(machine_code: dict[str, list[str]]) -> None:
    """FP8 is decoded by the conversion instruction for f16 and without one for bf16; nothing spills."""
    kernels = {name: code for name, code in machine_code.items() if "8fp8_gemv4gemv" in name}
    targets = {name.split()[0] for name in machine_code}
    assert targets and len(kernels) == 32 * len(targets)
    for name, code in kernels.items():
        text = "\n".join(code)
        assert not re.search(r"\b(LDL|STL)\b", text), name
        half = "6__half" in name
        assert len(re.findall(r"F2FP\.F16\.E4M3\.UNPACK_B", text)) == (128 if half else 0), name
        product = "HMMA.16816.F32 " if half else "HMMA.16816.F32.BF16 "
        assert text.count(product) == (32 if "Li1ELi" in name else 64), name
