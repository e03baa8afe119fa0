"""The GDN metadata must bound the accepted-token count for the consumers that no patch reaches.

Compiled kernels (``fused_gdn_decode_post_conv_mtp``, the CPU's recurrent kernel) read a state slot at
``accepted - 1`` as well; what the metadata builder hands out is all they see.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vllm is not installed", allow_module_level=True)

from reference.gdn_metadata import DRAFTS, verify


@pytest.mark.parametrize("full_graphs", [False, True])
def test_accepted_counts_stay_between_one_and_the_row(full_graphs: bool) -> None:
    counts = torch.tensor([0, 2, 9], dtype=torch.int32)
    metadata = verify([DRAFTS + 1] * 3, counts, full_graphs=full_graphs)
    assert metadata.num_spec_decodes == 3
    assert metadata.num_accepted_tokens.tolist() == [1, 2, DRAFTS + 1]
    assert metadata.num_accepted_tokens.dtype == torch.int32
    # The runner's own buffer keeps what it had: other steps read it.
    assert counts.tolist() == [0, 2, 9]
