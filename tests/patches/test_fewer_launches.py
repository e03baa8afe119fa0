"""patches/vllm/0021: what a decode step no longer launches gives what it gave."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from vllm.v1.attention.backends.flash_attn import FlashAttentionMetadataBuilder
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_runner import GPUModelRunner


def rows(indices: list[int], requests: int, tokens: int, drafts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a batch picks of ten rows, and these."""
    batch: Any = object.__new__(InputBatch)
    batch.num_reqs, batch.num_tokens, batch.num_draft_tokens = requests, tokens, drafts
    batch.logits_indices = torch.tensor(indices)
    whole = torch.arange(20).view(10, 2)
    return batch.rows_of_logits(whole), whole


@pytest.mark.parametrize(
    ("indices", "requests", "tokens", "drafts", "view"),
    [
        ([0, 1, 2], 3, 3, 0, True),
        ([0], 1, 1, 0, True),
        ([4], 1, 5, 0, False),  # a prefill
        ([0, 1, 6], 3, 7, 0, False),  # one among decodes
        ([0, 1, 2, 3], 2, 4, 2, False),  # drafts
        ([2], 1, 3, 0, False),  # of three requests one is this rank's
    ],
)
def test_the_rows_are_those_of_the_indices(
    indices: list[int], requests: int, tokens: int, drafts: int, view: bool
) -> None:
    picked, whole = rows(indices, requests, tokens, drafts)
    assert torch.equal(picked, whole[indices])
    assert (picked.data_ptr() == whole.data_ptr()) is view


def test_what_a_step_without_drafts_has_is_made_once() -> None:
    runner: Any = SimpleNamespace(device=torch.device("cpu"))
    for requests in (3, 1, 3):
        cumulative, positions = GPUModelRunner._without_drafts(runner, requests)
        assert cumulative.tolist() == list(range(requests + 1)) and cumulative.dtype == torch.int32
        assert positions.tolist() == [0] * requests and positions.dtype == torch.int32
    again = GPUModelRunner._without_drafts(runner, 3)
    assert again[0] is GPUModelRunner._without_drafts(runner, 3)[0]


def test_behind_the_metadata_all_is_zero() -> None:
    builder: Any = SimpleNamespace(
        use_full_cuda_graph=True, scheduler_metadata=torch.zeros(9, dtype=torch.int32)
    )
    for count in (3, 9, 5, 5, 8, 1):
        given = torch.arange(1, count + 1, dtype=torch.int32)
        stored = FlashAttentionMetadataBuilder._store_scheduler_metadata(builder, given)
        assert torch.equal(stored, given) and stored.data_ptr() == builder.scheduler_metadata.data_ptr()
        assert not builder.scheduler_metadata[count:].any()
