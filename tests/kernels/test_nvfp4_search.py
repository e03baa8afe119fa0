"""gb10::nvfp4_search without a GPU: schema, refusals, machine code, the kernel on the CPU."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import on_the_host
import pytest
from libraries import ROUTES, built, instructions

torch = pytest.importorskip("torch")

from gb10.nvfp4 import dequantize, global_scale_for, power_of_two, quantize_searched  # noqa: E402

SCHEMA = (
    "gb10::nvfp4_search(Tensor weight, Tensor global_scale, Tensor(a!) codes, Tensor(b!) scales, "
    "Tensor(c!) squares) -> ()"
)


@pytest.fixture
def good(operators: None) -> dict[str, Any]:
    """Arguments that only their device speaks against."""
    return {
        "weight": torch.zeros(24, 48, dtype=torch.bfloat16),
        "global_scale": torch.ones(1),
        "codes": torch.zeros(24, 24, dtype=torch.uint8),
        "scales": torch.zeros(24, 3, dtype=torch.float8_e4m3fn),
        "squares": torch.zeros(24, 2, dtype=torch.float64),
    }


def refusal(arguments: dict[str, Any]) -> str:
    with pytest.raises(RuntimeError) as caught:
        torch.ops.gb10.nvfp4_search(*arguments.values())
    lines: list[str] = str(caught.value).splitlines()
    return next(line for line in lines if "gb10::nvfp4_search:" in line)


def test_schema(operators: None) -> None:
    assert str(torch.ops.gb10.nvfp4_search.default._schema) == SCHEMA


BAD: list[tuple[str, Callable[[Any], Any], str]] = [
    ("weight", lambda t: t.float(), "weight is float32; it must be bfloat16 or float16"),
    ("weight", lambda t: t[:0], "weight has 0 rows; it must have at least one"),
    ("weight", lambda t: t[0], "weight has shape [48]; it must be [any, any]"),
    ("weight", lambda t: t[:, :40].contiguous(), "K (the columns of weight) is 40"),
    ("global_scale", lambda t: t.double(), "global_scale is float64; it must be float32"),
    ("global_scale", lambda t: t.repeat(2), "global_scale has shape [2]; it must have one element"),
    ("codes", lambda t: t[:, :23], "codes has shape [24, 23]; it must be [24, 24]"),
    ("scales", lambda t: t[:23], "scales has shape [23, 3]; it must be [24, 3]"),
    ("squares", lambda t: t.float(), "squares is float32; it must be float64"),
    ("squares", lambda t: t[:, :1], "squares has shape [24, 1]; it must be [24, 2]"),
    ("weight", lambda t: t.T.contiguous().T, "weight is not contiguous"),
    ("codes", lambda t: t.T.contiguous().T, "codes is not contiguous"),
]


@pytest.mark.parametrize(("name", "spoil", "said"), BAD, ids=[said for _, _, said in BAD])
def test_refuses_by_name(good: dict[str, Any], name: str, spoil: Callable[[Any], Any], said: str) -> None:
    assert said in refusal({**good, name: spoil(good[name])})


def test_a_cpu_tensor_is_refused_last(good: dict[str, Any]) -> None:
    assert "weight is not on a CUDA device" in refusal(good)


@pytest.mark.parametrize("route", ROUTES)
def test_machine_code(route: str, toolkit: Path) -> None:
    """Wide loads, no local memory; the instruction that encodes E2M1 where the target has it."""
    symbol = "nvfp4_search6search"
    machine_code = instructions(toolkit, built("kernels", route), symbol.encode())
    kernels = {name: code for name, code in machine_code.items() if symbol in name}
    assert len(kernels) % 2 == 0 and kernels
    for name, code in kernels.items():
        assert [line for line in code if re.search(r"LDG\.E\.128", line)], name
        assert not [line for line in code if re.search(r"\b(LDL|STL)\b", line)], name
        encoded = [line for line in code if "F2FP" in line and "E2M1" in line]
        assert bool(encoded) == name.startswith("sm_120"), name


def weights() -> Iterator[tuple[Any, Any]]:
    """Weights and global scales: normal and heavy-tailed numbers, zeros of both signs, both ends."""
    generator = torch.Generator().manual_seed(7)
    for dtype in (torch.bfloat16, torch.float16):
        for rows, k, tail in ((5, 16, 1), (3, 2048, 1), (2, 4112, 3), (40, 192, 2)):
            weight = torch.randn(rows, k, generator=generator) ** tail * 0.02
            weight[0, :16] = torch.tensor([0.0, -0.0] * 8)
            weight[-1, -16:] *= torch.logspace(-6, 0, 16)
            weight[rows // 2, :4] = torch.tensor([6e4, -6e4, 1e-7, -1e-7])
            weight = weight.to(dtype)
            usual = global_scale_for(float(weight.float().abs().max()))
            for scale in (power_of_two(usual), usual * 0.37, usual * 900):
                yield weight, scale


def test_the_kernel_on_the_cpu(tmp_path: Path, toolkit: Path) -> None:
    """The bits of ``gb10.nvfp4.quantize_searched``, and the sums of squares."""
    count = 0
    with (tmp_path / "weights").open("wb") as file:
        for weight, scale in weights():
            rows, k = weight.shape
            wide = weight.float()
            made = quantize_searched(wide, scale)
            differences = (dequantize(made.packed, made.block_scales, scale) - wide).square_()
            sums = torch.stack([summed(differences), summed(wide.square())], dim=1)
            file.write(struct.pack("<iiif", rows, k // 16, weight.dtype == torch.float16, float(scale)))
            for part in (weight.view(torch.int16), made.packed, made.block_scales.view(torch.uint8), sums):
                file.write(part.numpy().tobytes())
            count += 1
    assert f"{count} runs, 0 wrong" in on_the_host.run(
        "nvfp4_search", tmp_path, toolkit, tmp_path / "weights"
    )


def summed(squares: Any) -> Any:
    """Float64 ``[rows]``: blocks of 16 in float32, neighbours first, as the search adds them up."""
    squares = squares.unflatten(1, (-1, 16))
    while squares.shape[2] > 1:
        squares = squares[:, :, 0::2] + squares[:, :, 1::2]
    return squares[:, :, 0].double().sum(dim=1)
