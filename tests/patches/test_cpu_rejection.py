"""patches/vllm/0018: on the CPU, a placeholder in the place of a draft is never accepted when sampling."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("vllm")
cpu_triton_utils = pytest.importorskip("vllm.utils.cpu_triton_utils")

NONE, VOCABULARY, LONGEST = -1, 4, 3
BONUS, RECOVERED = 2, 3


def sample(drafts: list[list[int]], target: torch.Tensor, draft: torch.Tensor | None) -> list[list[int]]:
    """Verify the drafts of each request, at a draw of next to 0; return its output with NONE at the end.

    ``target`` and ``draft`` are probabilities float32 [drafts of all, VOCABULARY]. Both stay as they were.
    """
    counts = torch.tensor([len(tokens) for tokens in drafts])
    output = torch.full((len(drafts), LONGEST + 1), NONE, dtype=torch.int32)
    ids = torch.tensor([token for tokens in drafts for token in tokens], dtype=torch.int32)
    given = (ids, target, *(() if draft is None else (draft,)))
    before = [tensor.clone() for tensor in given]
    cpu_triton_utils._rejection_random_sample_kernel_impl(
        output,
        counts.cumsum(0).to(torch.int32),
        ids,
        draft,
        target,
        torch.full((len(drafts), 1), BONUS, dtype=torch.int32),
        torch.full((len(ids),), RECOVERED, dtype=torch.int32),
        torch.full((len(ids),), 1e-30, dtype=torch.float64),
        torch.zeros(len(drafts), dtype=torch.bool),
        LONGEST,
        VOCABULARY,
        NO_DRAFT_PROBS=draft is None,
    )
    for now, then in zip(given, before, strict=True):
        assert torch.equal(now, then)
    return output.tolist()


@pytest.mark.parametrize("certain", [False, True], ids=["no draft probabilities", "draft probabilities"])
def test_placeholders_are_rejected(certain: bool) -> None:
    """What stands before each row, in memory too, is as likely as can be."""
    memory = torch.ones(1 + 4, VOCABULARY)
    drafts = torch.full((4, VOCABULARY), 0.25) if certain else None
    output = sample([[0, NONE, 1], [NONE]], memory[1:], drafts)
    assert output == [[0, RECOVERED, NONE, NONE], [RECOVERED, NONE, NONE, NONE]]


def test_a_draft_probability_of_next_to_nothing_makes_no_difference() -> None:
    """The ratio is infinite there."""
    tiny = torch.full((1, VOCABULARY), 1e-45)
    assert sample([[NONE]], torch.ones(1, VOCABULARY), tiny) == [[RECOVERED, NONE, NONE, NONE]]
    assert sample([[NONE]], torch.ones(1, VOCABULARY), 0 * tiny) == [[RECOVERED, NONE, NONE, NONE]]


def test_drafts_are_taken_as_before() -> None:
    target = torch.tensor([[0.0, 1.0, 0.0, 0.0]] * 4)
    assert sample([[1, 1], [0], [1]], target, None) == [
        [1, 1, BONUS, NONE],
        [RECOVERED, NONE, NONE, NONE],
        [1, BONUS, NONE, NONE],
    ]
