"""Which batches our Gated DeltaNet kernel takes, out of vLLM's own metadata."""

from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from reference.gdn_metadata import DRAFTS, verify
from vllm.v1.attention.backends.gdn_attn import GDNAttentionMetadata

from gb10.vllm_plugin.cuda.layers.gdn import MAX_STEPS, decode_batch


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


def test_one_token_of_each_sequence() -> None:
    """A graph's batch is padded with slot 0; an eager one has fewer slots than rows."""
    found = metadata(num_decodes=3, num_actual_tokens=4, non_spec_state_indices_tensor=SLOTS)
    batch = decode_batch(found, 4) or pytest.fail("none")
    assert batch.slots.tolist() == [3, 1, 2, 0] and batch.rows == 4
    assert batch.accepted is None and batch.starts is None
    found = metadata(num_decodes=3, num_actual_tokens=3, non_spec_state_indices_tensor=SLOTS[:3])
    batch = decode_batch(found, 8) or pytest.fail("none")
    assert batch.slots.tolist() == [3, 1, 2] and batch.rows == 3


@pytest.mark.parametrize("counts", [[3, 3, 3], [2, 2, 2], [1, 1, 1], [3, 1, 2]])
@pytest.mark.parametrize("full_graphs", [False, True])
def test_drafts_of_any_length(counts: list[int], full_graphs: bool) -> None:
    """All slots of a sequence go along: what was accepted last may be beyond this step's tokens."""
    accepted = torch.tensor([1, 3, 2], dtype=torch.int32)
    found = verify(counts, accepted, full_graphs=full_graphs)
    batch = decode_batch(found, sum(counts) + 1) or pytest.fail("none")
    assert batch.accepted is not None and batch.starts is not None
    assert batch.slots.tolist() == [[1, 2, 3], [5, 6, 7], [9, 10, 11]]
    assert batch.accepted.tolist() == [1, 3, 2]
    assert batch.starts.tolist() == [0, counts[0], counts[0] + counts[1], sum(counts)]
    assert batch.rows == sum(counts) + 1, "the kernel writes zeros to the padding"


@pytest.mark.parametrize("count", [2, 3])
def test_a_graphs_padding_has_no_tokens(count: int) -> None:
    found = verify([count] * 2, torch.tensor([2, 1], dtype=torch.int32), full_graphs=True, requests=4)
    batch = decode_batch(found, 4 * count) or pytest.fail("none")
    assert batch.accepted is not None and batch.starts is not None
    assert batch.slots.tolist() == [[1, 2, 3], [5, 6, 7], [0, 0, 0], [0, 0, 0]]
    assert batch.accepted.tolist() == [2, 1, 1, 1]
    assert batch.starts.tolist() == [0, count, 2 * count, 2 * count, 2 * count] and batch.rows == 4 * count


@pytest.mark.parametrize(
    "given",
    [
        {"num_prefills": 1, "num_decodes": 2, "non_spec_state_indices_tensor": SLOTS},
        {"num_prefills": 1, "non_spec_state_indices_tensor": SLOTS},
        {"num_decodes": 0, "non_spec_state_indices_tensor": SLOTS},
    ],
)
def test_others_are_vllms(given: dict[str, Any]) -> None:
    """Prefills, mixed batches, nothing to do."""
    assert decode_batch(metadata(num_actual_tokens=4, **given), 4) is None


def test_drafts_among_prefills_and_too_many_are_vllms() -> None:
    found = verify([DRAFTS + 1] * 2, torch.ones(2, dtype=torch.int32), full_graphs=False)
    assert decode_batch(found, 6) is not None
    found.num_prefills = 1
    assert decode_batch(found, 6) is None
    found.num_prefills, found.spec_state_indices_tensor = 0, torch.ones(2, MAX_STEPS + 1, dtype=torch.int32)
    assert decode_batch(found, 6) is None
