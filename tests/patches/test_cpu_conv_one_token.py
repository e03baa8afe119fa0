"""patches/vllm/0014: the CPU's convolution gets the layout that it asks for, of a single token too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("vllm")
gdn_attention = pytest.importorskip("vllm.model_executor.layers.mamba.ops.cpu.gdn_attention")

CHANNELS, WIDER = 6, 10


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_channels_lie_side_by_side(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def convolve(*, x: torch.Tensor, **_rest: Any) -> torch.Tensor:
        seen.append(x)
        return x

    monkeypatch.setattr(gdn_attention.ops, "causal_conv1d_fwd_cpu", convolve)
    monkeypatch.setattr(gdn_attention, "is_conv_state_dim_first", lambda: False)
    projected = torch.arange(tokens * WIDER, dtype=torch.float32).reshape(tokens, WIDER)
    # As the caller does: for one token contiguous() changes nothing.
    part = projected[:, :CHANNELS].contiguous()
    nothing = torch.empty(0)
    gdn_attention._causal_conv1d_fwd_cpu(
        x=part.transpose(0, 1),
        weight=nothing,
        bias=None,
        conv_states=nothing,
        query_start_loc=nothing,
        cache_indices=nothing,
        has_initial_state=nothing,
        silu_activation=True,
        is_weight_packed=True,
    )
    (x,) = seen
    # What csrc/cpu/sgl-kernels/conv.cpp checks.
    assert x.stride(-2) == 1
    assert x.stride(-1) == x.size(-2) == CHANNELS
    assert torch.equal(x, projected[:, :CHANNELS].T)
