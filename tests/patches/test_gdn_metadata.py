"""The GDN metadata must bound the accepted-token count for the consumers that no patch reaches.

Compiled kernels (``fused_gdn_decode_post_conv_mtp``, the CPU's recurrent kernel) read a state slot at
``accepted - 1`` as well; what the metadata builder hands out is all they see.
"""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vllm is not installed", allow_module_level=True)

from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.gdn_attn import GDNAttentionMetadataBuilder

DRAFTS, MAX_REQUESTS = 2, 4


def make_builder(full_graphs: bool) -> Any:
    builder: Any = object.__new__(GDNAttentionMetadataBuilder)
    rows, width = MAX_REQUESTS, DRAFTS + 1
    vars(builder).update(
        use_spec_decode=True,
        num_spec=DRAFTS,
        kv_cache_spec=None,
        vllm_config=SimpleNamespace(cache_config=SimpleNamespace(mamba_cache_mode="none")),
        use_full_cuda_graph=full_graphs,
        decode_cudagraph_max_bs=rows * width,
        spec_state_indices_tensor=torch.zeros(rows, width, dtype=torch.int32),
        spec_sequence_masks=torch.zeros(rows, dtype=torch.bool),
        spec_token_indx=torch.zeros(rows * width, dtype=torch.int32),
        non_spec_token_indx=torch.zeros(rows * width, dtype=torch.int32),
        spec_query_start_loc=torch.zeros(rows + 1, dtype=torch.int32),
        num_accepted_tokens=torch.zeros(rows, dtype=torch.int32),
    )
    return builder


@pytest.mark.parametrize("full_graphs", [False, True])
def test_accepted_counts_stay_between_one_and_the_row(full_graphs: bool) -> None:
    starts = torch.tensor([0, 3, 6, 9], dtype=torch.int32)
    common = CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=torch.tensor([20, 21, 22], dtype=torch.int32),
        num_reqs=3,
        num_actual_tokens=9,
        max_query_len=3,
        max_seq_len=22,
        block_table_tensor=torch.arange(1, 13, dtype=torch.int32).reshape(3, 4),
        slot_mapping=torch.zeros(9, dtype=torch.int64),
    )
    counts = torch.tensor([0, 2, 9], dtype=torch.int32)
    metadata = make_builder(full_graphs).build(
        0, common, counts, num_decode_draft_tokens_cpu=torch.full((3,), DRAFTS, dtype=torch.int32)
    )
    assert metadata.num_spec_decodes == 3
    assert metadata.num_accepted_tokens.tolist() == [1, 2, DRAFTS + 1]
    assert metadata.num_accepted_tokens.dtype == torch.int32
    # The runner's own buffer keeps what it had: other steps read it.
    assert counts.tolist() == [0, 2, 9]
