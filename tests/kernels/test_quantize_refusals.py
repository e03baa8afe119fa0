"""The quantisation operators without a GPU: what they refuse, by name, and in which words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("operators")

FP8 = torch.float8_e4m3fn


def arguments(**changes: Any) -> dict[str, Any]:
    """Good arguments of `quantize_nvfp4` but for the device, with some replaced."""
    good = {
        "x": torch.ones(3, 64, dtype=torch.bfloat16),
        "global_scale": torch.ones(()),
        "swizzled": False,
        "packed": torch.empty(3, 32, dtype=torch.uint8),
        "scales": torch.empty(3, 4, dtype=FP8),
    }
    return {**good, **changes}


def expert_arguments(**changes: Any) -> dict[str, Any]:
    good = {
        "x": torch.ones(5, 64, dtype=torch.float16),
        "global_scales": torch.ones(2),
        "expert_offsets": torch.tensor([0, 2, 5], dtype=torch.int32),
        "scale_offsets": torch.tensor([0, 128, 256], dtype=torch.int32),
        "packed": torch.empty(5, 32, dtype=torch.uint8),
        "scales": torch.empty(256, 4, dtype=FP8),
    }
    return {**good, **changes}


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "x is not on a CUDA device"),
    (
        {"x": torch.ones(3, 64, dtype=torch.float64)},
        "x is float64; it must be bfloat16 or float16 or float32",
    ),
    ({"packed": torch.empty(3, 32, dtype=torch.int32)}, "packed is int32; it must be uint8"),
    ({"scales": torch.empty(3, 4, dtype=torch.uint8)}, "scales is uint8; it must be float8_e4m3fn"),
    ({"global_scale": torch.ones((), dtype=torch.float64)}, "global_scale is float64; it must be float32"),
    ({"global_scale": torch.ones(2)}, r"global_scale has shape \[2\]; it must have one element"),
    (
        {"x": torch.ones(3, 40, dtype=torch.bfloat16)},
        r"x has shape \[3, 40\]; its last dimension must be a multiple of",
    ),
    (
        {"x": torch.ones(3, 0, dtype=torch.bfloat16)},
        r"x has shape \[3, 0\]; its last dimension must be a multiple of",
    ),
    ({"x": torch.ones((), dtype=torch.bfloat16)}, r"x has shape \[\]; it must have at least one dimension"),
    ({"packed": torch.empty(3, 31, dtype=torch.uint8)}, r"packed has shape \[3, 31\]; it must be \[3, 32\]"),
    ({"packed": torch.empty(96, dtype=torch.uint8)}, r"packed has shape \[96\]; it must be \[3, 32\]"),
    ({"scales": torch.empty(4, 4, dtype=FP8)}, r"scales has shape \[4, 4\]; it must be \[3, 4\]"),
    ({"swizzled": True}, r"scales has shape \[3, 4\]; it must be \[128, 4\]"),
    ({"x": torch.ones(3, 128, dtype=torch.bfloat16)[:, ::2]}, "x is not contiguous"),
    (
        {"x": torch.ones(3 * 64 + 1, dtype=torch.bfloat16)[1:].view(3, 64)},
        "x does not begin at a multiple of 16 bytes",
    ),
    (
        {"packed": torch.empty(97, dtype=torch.uint8)[1:].view(3, 32)},
        "packed does not begin at a multiple of 8 bytes",
    ),
    (
        {"swizzled": True, "scales": torch.empty(513, dtype=FP8)[1:].view(128, 4)},
        "scales does not begin at a multiple of 4 bytes",
    ),
    ({"scales": torch.empty(13, dtype=FP8)[1:].view(3, 4)}, "x is not on a CUDA device"),
]


@pytest.mark.parametrize(("changes", "words"), BAD, ids=[words[:40] for _, words in BAD])
def test_quantize_refuses_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RuntimeError, match=f"gb10::quantize_nvfp4: {words}"):
        torch.ops.gb10.quantize_nvfp4(*arguments(**changes).values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, r"packed has shape \[3, 32\]; it must be \[3, 16\]"),
        (
            {"x": torch.ones(3, 48, dtype=torch.half)},
            r"x has shape \[3, 48\]; its last dimension must be a multiple of 32",
        ),
        ({"x": torch.ones(3, 128, dtype=torch.half)}, "x is not on a CUDA device"),
    ],
)
def test_silu_mul_refuses_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RuntimeError, match=f"gb10::silu_mul_quantize_nvfp4: {words}"):
        torch.ops.gb10.silu_mul_quantize_nvfp4(*arguments(**changes).values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "x is not on a CUDA device"),
        ({"x": torch.ones(5, 1, 64)}, r"x has shape \[5, 1, 64\]; it must be \[any, any\]"),
        ({"global_scales": torch.ones(3)}, r"expert_offsets has shape \[3\]; it must be \[4\]"),
        ({"global_scales": torch.ones(0)}, "global_scales has 0 elements; it must have one for each expert"),
        ({"expert_offsets": torch.zeros(3, dtype=torch.int64)}, "expert_offsets is int64; it must be int32"),
        (
            {"scale_offsets": torch.zeros(2, dtype=torch.int32)},
            r"scale_offsets has shape \[2\]; it must be \[3\]",
        ),
        (
            {"scales": torch.empty(1025, dtype=FP8)[1:].view(256, 4)},
            "scales does not begin at a multiple of 4 bytes",
        ),
        ({"scales": torch.empty(200, 4, dtype=FP8)}, "scales has 200 rows; it must have a multiple of 128"),
        ({"scales": torch.empty(256, 8, dtype=FP8)}, r"scales has shape \[256, 8\]; it must be \[any, 4\]"),
        (
            {"packed": torch.empty(4, 32, dtype=torch.uint8)},
            r"packed has shape \[4, 32\]; it must be \[5, 32\]",
        ),
    ],
)
def test_experts_refuse_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RuntimeError, match=f"gb10::quantize_nvfp4_experts: {words}"):
        torch.ops.gb10.quantize_nvfp4_experts(*expert_arguments(**changes).values())


@settings(max_examples=60, deadline=None)
@given(
    leading=st.lists(st.integers(0, 5), max_size=3),
    blocks=st.integers(1, 9),
    swizzled=st.booleans(),
    gated=st.booleans(),
)
def test_the_outputs_that_python_makes_have_the_shapes_that_the_operator_wants(
    leading: list[int], blocks: int, swizzled: bool, gated: bool
) -> None:
    """Everything but the device is right, so the device is what is refused."""
    from gb10.kernels import quantize

    function = quantize.silu_mul_quantize_nvfp4 if gated else quantize.quantize_nvfp4
    x = torch.ones(*leading, blocks * 16 * (1 + gated), dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="x is not on a CUDA device"):
        function(x, torch.ones(1), swizzled=swizzled)


def test_the_meta_implementations_take_the_shapes() -> None:
    from gb10.kernels import quantize

    x = torch.ones(6, 96, device="meta", dtype=torch.half)
    packed, scales = quantize.quantize_nvfp4(x, torch.ones((), device="meta"), swizzled=True)
    assert (packed.shape, scales.shape, scales.dtype) == ((6, 48), (128, 8), FP8)
    offsets = torch.zeros(5, dtype=torch.int32, device="meta")
    packed, scales = quantize.quantize_nvfp4_experts(x, torch.ones(4, device="meta"), offsets, offsets)
    assert (packed.shape, scales.shape) == ((6, 48), (640, 8))
