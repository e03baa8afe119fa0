"""gb10::nvfp4_dequantize without a GPU: refusals, machine code, the kernel on the CPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import on_the_host
import pytest


@pytest.fixture
def good(operators: None) -> dict[str, Any]:
    """Arguments that only their device speaks against."""
    import torch

    return {
        "weight": torch.zeros(24, 64, dtype=torch.uint8),
        "scales": torch.zeros(24, 8, dtype=torch.float8_e4m3fn),
        "factors": torch.ones(24),
        "swizzled": False,
        "out": torch.zeros(24, 128, dtype=torch.bfloat16),
    }


def refusal(arguments: dict[str, Any]) -> str:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.ops.gb10.nvfp4_dequantize(*arguments.values())
    lines: list[str] = str(caught.value).splitlines()
    return next(line for line in lines if "gb10::nvfp4_dequantize:" in line)


BAD: list[tuple[str, Callable[[Any], Any], str]] = [
    ("weight", lambda t: t.int(), "weight is int32; it must be uint8"),
    ("weight", lambda t: t[:0], "weight has 0 rows; it must have at least one"),
    ("weight", lambda t: t[:, :48].contiguous(), "K (twice the columns of weight) is 96"),
    ("scales", lambda t: t[:23], "scales has shape [23, 8]; it must be [24, 8]"),
    ("swizzled", lambda t: True, "scales has shape [24, 8]; it must be [128, 8]"),
    ("factors", lambda t: t[:2], "factors has shape [2]; it must have one element, or one for each row"),
    ("factors", lambda t: t[None], "factors has shape [1, 24]; it must have one element"),
    ("out", lambda t: t.float(), "out is float32; it must be bfloat16 or float16"),
    ("out", lambda t: t[:23], "out has shape [23, 128]; it must be [24, 128]"),
    ("out", lambda t: t.T.contiguous().T, "out is not contiguous"),
]


@pytest.mark.parametrize(("name", "spoil", "said"), BAD, ids=[said for _, _, said in BAD])
def test_refuses_by_name(good: dict[str, Any], name: str, spoil: Callable[[Any], Any], said: str) -> None:
    assert said in refusal({**good, name: spoil(good[name])})


def test_a_cpu_tensor_is_refused_last(good: dict[str, Any]) -> None:
    for factors in (good["factors"], good["factors"][:1], good["factors"][0], None):
        assert "weight is not on a CUDA device" in refusal({**good, "factors": factors})


def test_machine_code(machine_code: dict[str, list[str]]) -> None:
    kernels = {name: code for name, code in machine_code.items() if "nvfp4_dequantize10dequantize" in name}
    assert len(kernels) % 4 == 0 and kernels
    for name, code in kernels.items():
        assert [line for line in code if re.search(r"STG\.E\.128", line)], name
        assert not [line for line in code if re.search(r"\b(LDL|STL)\b", line)], name


@pytest.mark.parametrize("decodes", [False, True])
def test_the_kernel_on_the_cpu(tmp_path: Path, toolkit: Path, decodes: bool) -> None:
    """Every value, to the bit."""
    printed = on_the_host.run("nvfp4_dequantize", tmp_path, toolkit, decodes=decodes)
    assert re.search(r"[1-9]\d* runs, 0 wrong", printed)
