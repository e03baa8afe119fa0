"""patches/vllm/0007: with drafts, the CPU engine samples at the temperature that was asked for."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("vllm")
cpu_triton_utils = pytest.importorskip("vllm.utils.cpu_triton_utils")

GREEDY = 0
"""What vLLM writes for the temperature of a greedy request; it is to become 1."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64])
def test_each_request_gives_its_value_to_all_its_tokens(dtype: torch.dtype) -> None:
    values = torch.tensor([7, GREEDY, 3, 5], dtype=dtype)
    cumulative = torch.tensor([2, 3, 3, 7], dtype=torch.int32)
    output = torch.full((7,), 99, dtype=dtype)
    cpu_triton_utils._expand_kernel_impl(output, values, cumulative, GREEDY, 1)
    assert output.dtype is dtype
    assert output.tolist() == [7, 7, 1, 5, 5, 5, 5]


def test_fractions_stay_fractions() -> None:
    output = torch.full((3,), 99.0)
    cumulative = torch.tensor([1, 3], dtype=torch.int32)
    cpu_triton_utils._expand_kernel_impl(output, torch.tensor([0.7, 1.3]), cumulative, GREEDY, 1)
    torch.testing.assert_close(output, torch.tensor([0.7, 1.3, 1.3]), rtol=0, atol=0)
