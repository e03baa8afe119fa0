"""Which batches our Gated DeltaNet kernel takes, out of vLLM's own metadata."""

from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.v1.attention.backends.gdn_attn import GDNAttentionMetadata

from gb10.vllm_plugin.cuda.layers.gdn import decode_batch


def metadata(**given: Any) -> GDNAttentionMetadata:
    counts = dict.fromkeys(
        (
            *("num_prefills", "num_prefill_tokens", "num_decodes", "num_decode_tokens"),
            *("num_spec_decodes", "num_spec_decode_tokens", "num_actual_tokens"),
        ),
        0,
    )
    return GDNAttentionMetadata(**counts | given)


SLOTS = torch.tensor([3, 1, 2, 0], dtype=torch.int32)
DRAFT_SLOTS = torch.tensor([[3, 4, 5], [1, 2, 6], [0, 0, 0]], dtype=torch.int32)
MASKS = torch.tensor([True, True, False])


def test_one_token_of_each_sequence() -> None:
    """A graph's batch is padded with slot 0; an eager one has fewer slots than rows."""
    found = metadata(num_decodes=3, num_actual_tokens=4, non_spec_state_indices_tensor=SLOTS)
    slots, accepted = decode_batch(found, 4) or pytest.fail("none")
    assert slots.tolist() == [3, 1, 2, 0] and accepted is None
    found = metadata(num_decodes=3, num_actual_tokens=3, non_spec_state_indices_tensor=SLOTS[:3])
    slots, _ = decode_batch(found, 8) or pytest.fail("none")
    assert slots.tolist() == [3, 1, 2]


@pytest.mark.parametrize(("rows", "expected"), [(9, 3), (6, 2), (8, 2)])
def test_the_most_drafts_of_each(rows: int, expected: int) -> None:
    found = metadata(
        num_spec_decodes=2,
        num_actual_tokens=rows,
        spec_sequence_masks=MASKS,
        spec_state_indices_tensor=DRAFT_SLOTS,
        num_accepted_tokens=torch.tensor([2, 1, 1], dtype=torch.int32),
        uniform_spec_sequence_length=3,
    )
    slots, accepted = decode_batch(found, rows) or pytest.fail("none")
    assert accepted is not None
    assert slots.tolist() == DRAFT_SLOTS.tolist()[:expected]
    assert accepted.tolist() == [2, 1, 1][:expected]


@pytest.mark.parametrize(
    "given",
    [
        {"num_prefills": 1, "num_decodes": 2, "non_spec_state_indices_tensor": SLOTS},
        {"num_prefills": 1, "non_spec_state_indices_tensor": SLOTS},
        {"num_decodes": 0, "non_spec_state_indices_tensor": SLOTS},
        {"num_spec_decodes": 2, "spec_sequence_masks": MASKS, "uniform_spec_sequence_length": None},
        {"num_spec_decodes": 2, "spec_sequence_masks": MASKS, "uniform_spec_sequence_length": 2},
        {"num_spec_decodes": 2, "spec_sequence_masks": MASKS, "uniform_spec_sequence_length": 9},
        {
            "num_spec_decodes": 2,
            "num_prefills": 1,
            "spec_sequence_masks": MASKS,
            "uniform_spec_sequence_length": 3,
        },
    ],
)
def test_others_are_vllms(given: dict[str, Any]) -> None:
    """Prefills, mixed batches, drafts of different lengths, fewer than there are slots for, too many."""
    given |= {
        "num_actual_tokens": 4,
        "spec_state_indices_tensor": DRAFT_SLOTS,
        "num_accepted_tokens": torch.ones(3, dtype=torch.int32),
    }
    assert decode_batch(metadata(**given), 4) is None
