"""patches/vllm/0009: top_k without top_p takes a step that has no draft tokens."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("vllm")

from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

VOCABULARY = 6


def test_no_rows_stay_no_rows() -> None:
    logits, k = torch.empty(0, VOCABULARY), torch.empty(0, dtype=torch.int32)
    assert apply_top_k_top_p_pytorch(logits, k, None, allow_cpu_sync=True).shape == (0, VOCABULARY)


def test_rows_keep_their_largest() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0, 5.0, 4.0]] * 3)
    k = torch.tensor([1, VOCABULARY, 3], dtype=torch.int32)
    kept = apply_top_k_top_p_pytorch(logits, k, None, allow_cpu_sync=True).isfinite()
    assert [row.nonzero().flatten().tolist() for row in kept] == [[4], list(range(VOCABULARY)), [0, 4, 5]]
