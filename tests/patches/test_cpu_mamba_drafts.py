"""patches/vllm/0019: an engine on the CPU refuses drafts for Mamba and short-convolution layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from vllm.v1.attention.backends.mamba1_attn import Mamba1AttentionMetadataBuilder
from vllm.v1.attention.backends.mamba2_attn import Mamba2AttentionMetadataBuilder
from vllm.v1.attention.backends.short_conv_attn import ShortConvAttentionMetadataBuilder

BUILDERS = [
    Mamba1AttentionMetadataBuilder,
    Mamba2AttentionMetadataBuilder,
    ShortConvAttentionMetadataBuilder,
]


def build(builder: Any, drafts: int, device: str) -> Any:
    """Make a builder as the engine does, with what it reads of the configuration."""
    speculative = SimpleNamespace(num_speculative_tokens=drafts, parallel_drafting=False) if drafts else None
    config = SimpleNamespace(
        speculative_config=speculative,
        num_speculative_tokens=drafts,
        compilation_config=SimpleNamespace(
            max_cudagraph_capture_size=None, cudagraph_mode=SimpleNamespace(has_full_cudagraphs=lambda: False)
        ),
        cache_config=SimpleNamespace(
            use_replayssm=False, replayssm_buffer_len=None, mamba_cache_mode="none", block_size=16
        ),
        mamba_config=SimpleNamespace(backend=None),
        scheduler_config=SimpleNamespace(max_num_seqs=4),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        model_config=SimpleNamespace(get_mamba_chunk_size=lambda: 64, max_model_len=128),
    )
    spec = SimpleNamespace(block_size=16, shapes=(), num_speculative_blocks=drafts)
    return builder(spec, ["layer"], config, torch.device(device))


@pytest.mark.parametrize("builder", BUILDERS)
def test_drafts_are_refused_on_the_cpu(builder: Any) -> None:
    with pytest.raises(
        NotImplementedError, match="take no drafts on the CPU; leave out --speculative-config"
    ):
        build(builder, 2, "cpu")


@pytest.mark.parametrize("builder", BUILDERS)
def test_nothing_else_is_refused(builder: Any) -> None:
    assert build(builder, 0, "cpu").num_spec_tokens == 0
    # No GPU is needed to ask: `meta` is a device without memory.
    assert build(builder, 2, "meta").num_spec_tokens == 2
