"""vLLM's own metadata of Gated DeltaNet for drafts to verify, without an engine."""

from types import SimpleNamespace
from typing import Any

import torch
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.gdn_attn import GDNAttentionMetadata, GDNAttentionMetadataBuilder

DRAFTS, MAX_REQUESTS = 2, 4
"""The most drafts of a request, and the most requests, of the engine that there is none of."""


def verify(
    counts: list[int], accepted: torch.Tensor, *, full_graphs: bool, requests: int | None = None
) -> GDNAttentionMetadata:
    """Metadata of requests with ``counts`` tokens each, drafts and one more.

    ``accepted``: int32, how many of each one's last tokens were. ``requests``: how many with the padding of
    a full graph, which has rows for as many tokens of each. The slots of request n are 4 n + 1 to 4 n + 3.
    """
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
        spec_query_start_loc=torch.full((rows + 1,), -1, dtype=torch.int32),
        num_accepted_tokens=torch.zeros(rows, dtype=torch.int32),
    )
    padding = (requests or len(counts)) - len(counts)
    lengths = torch.tensor([*counts, *[0] * padding], dtype=torch.int32)
    starts = torch.cat((torch.zeros(1, dtype=torch.int32), lengths.cumsum(0, dtype=torch.int32)))
    total = int(starts[-1]) if requests is None else requests * max(counts)
    common = CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=lengths + 20,
        num_reqs=len(lengths),
        num_actual_tokens=total,
        max_query_len=max(counts),
        max_seq_len=20 + max(counts),
        block_table_tensor=torch.arange(1, 4 * len(lengths) + 1, dtype=torch.int32).reshape(-1, 4),
        slot_mapping=torch.zeros(total, dtype=torch.int64),
    )
    drafts = torch.tensor([*(count - 1 for count in counts), *[-1] * padding], dtype=torch.int32)
    accepted = torch.cat((accepted, torch.ones(padding, dtype=torch.int32)))
    return builder.build(0, common, accepted, num_decode_draft_tokens_cpu=drafts)
