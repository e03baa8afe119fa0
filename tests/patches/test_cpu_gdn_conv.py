"""patches/vllm/0008: on the CPU, a step with few drafts leaves the convolution a right history."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

ops = pytest.importorskip("vllm._custom_ops")
gdn = pytest.importorskip("vllm.model_executor.layers.mamba.ops.cpu.gdn_attention")

DRAFTS, WIDTH, CHANNELS = 3, 4, 64
COLUMNS = WIDTH - 1 + DRAFTS
REQUESTS, STEPS, TOKENS = 3, 60, 200
BRANCHES = ("torch", "native")


def bf16(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).to(torch.bfloat16)


class Sequences:
    """Requests that decode known tokens in steps of any length, through vLLM's `_spec_forward`."""

    def __init__(self, dim_first: bool) -> None:
        self.tokens = bf16(REQUESTS, TOKENS, CHANNELS)
        self.weight = bf16(CHANNELS, WIDTH)
        # Request i has slot i + 1. What lies behind the history must never be read.
        self.buffer = torch.full((REQUESTS + 1, CHANNELS, COLUMNS), 100.0, dtype=torch.bfloat16)
        if not dim_first:
            self.buffer = self.buffer.transpose(1, 2).contiguous().transpose(1, 2)
        self.buffer[:, :, : WIDTH - 1] = 0
        self.at = [0] * REQUESTS
        self.accepted = [1] * REQUESTS
        packable = torch.cpu._is_avx512_bf16_supported() or gdn.is_arm_bf16()
        self.layer = SimpleNamespace(
            activation="silu",
            conv1d=SimpleNamespace(
                weight=ops.causal_conv1d_weight_pack(self.weight) if packable else self.weight,
                bias=None,
                _cpu_unpacked_conv_weight=self.weight,
            ),
            A_log=None,
            dt_bias=None,
            rearrange_mixed_qkv=lambda mixed: (mixed.unsqueeze(0),) * 3,
        )
        inputs = F.pad(self.tokens.float().transpose(1, 2), (WIDTH - 1, 0))
        expected = F.silu(F.conv1d(inputs, self.weight.float().unsqueeze(1), groups=CHANNELS))
        self.expected = expected.transpose(1, 2)

    def step(self, lengths: list[int], accept: Callable[[int], int]) -> float:
        """Run one step with ``lengths`` tokens for each request, of which ``accept`` says how many count.

        Returns the largest difference to a convolution over the whole sequence, at the tokens that count.
        """
        kept = [accept(length) for length in lengths]
        rows = []
        for request, (length, count) in enumerate(zip(lengths, kept, strict=True)):
            right = self.tokens[request, self.at[request] : self.at[request] + count]
            rows += [right, bf16(length - count, CHANNELS)]
        starts = torch.tensor([0, *lengths]).cumsum(0)
        slots = torch.arange(1, REQUESTS + 1, dtype=torch.int32).unsqueeze(1).repeat(1, DRAFTS + 1)
        metadata = gdn.GDNAttentionMetadata(
            num_prefills=0,
            num_prefill_tokens=0,
            num_decodes=0,
            num_decode_tokens=0,
            num_spec_decodes=REQUESTS,
            num_spec_decode_tokens=sum(lengths),
            num_actual_tokens=sum(lengths),
            spec_state_indices_tensor=slots,
            spec_query_start_loc=starts.to(torch.int32),
            num_accepted_tokens=torch.tensor(self.accepted, dtype=torch.int32),
        )
        gate, state = torch.empty(0), torch.empty(0)
        mixed = torch.cat(rows)
        out = gdn._spec_forward(self.layer, metadata, mixed, gate, gate, self.buffer, state, WIDTH, COLUMNS)
        worst = 0.0
        for request, count in enumerate(kept):
            found = out[starts[request] : starts[request] + count].float()
            wanted = self.expected[request, self.at[request] : self.at[request] + count]
            worst = max(worst, float((found - wanted).abs().max()))
            self.at[request] += count
        self.accepted = kept
        return worst


@pytest.fixture
def sequences(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[Sequences, dict[str, int]]:
    """Fresh requests, and how often the C++ kernel ran. The parameter is (branch, layout of the buffer)."""
    branch, dim_first = request.param
    if branch == "native" and not (torch.cpu._is_avx512_bf16_supported() or gdn.is_arm_bf16()):
        pytest.skip("the C++ convolution needs AVX-512 BF16 or ARM BF16")
    calls = {"native": 0}
    native = ops.causal_conv1d_update_cpu

    def counted(**arguments: Any) -> torch.Tensor:
        calls["native"] += 1
        result: torch.Tensor = native(**arguments)
        return result

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: branch == "native")
    monkeypatch.setattr(gdn, "is_arm_bf16", lambda: False)
    monkeypatch.setattr(gdn, "is_conv_state_dim_first", lambda: dim_first)
    monkeypatch.setattr(gdn.ops, "causal_conv1d_update_cpu", counted)
    # The recurrence that follows is not changed: what it is given is what this looks at.
    monkeypatch.setattr(
        gdn.ops, "fused_sigmoid_gating_delta_rule_update_spec_cpu", lambda **arguments: arguments["q"]
    )
    torch.manual_seed(11)
    return Sequences(dim_first), calls


both = pytest.mark.parametrize(
    "sequences",
    [(branch, dim_first) for branch in BRANCHES for dim_first in (False, True)],
    ids=[f"{branch}-{layout}" for branch in BRANCHES for layout in ("SD", "DS")],
    indirect=True,
)
ROUNDING = 0.05
"""Values are up to 8 and rounded to 8 bits twice. A column too far: more than 1."""


@both
def test_steps_of_any_length_follow_each_other(sequences: tuple[Sequences, dict[str, int]]) -> None:
    """Each number of accepted tokens before each number of tokens: alike in all requests, and mixed."""
    requests, calls = sequences
    chosen = random.Random(5)
    seen = set()
    for number in range(STEPS):
        if number % 2:
            lengths = [chosen.randint(1, DRAFTS + 1)] * REQUESTS
        else:
            lengths = [chosen.randint(1, DRAFTS + 1) for _ in range(REQUESTS)]
        seen |= set(zip(requests.accepted, lengths, strict=True))
        assert requests.step(lengths, lambda length: chosen.randint(1, length)) < ROUNDING
    assert len(seen) == (DRAFTS + 1) ** 2
    assert (calls["native"] > 0) == (torch.cpu._is_amx_tile_supported())


@both
def test_no_draft_is_ever_right(sequences: tuple[Sequences, dict[str, int]]) -> None:
    """Short steps without one accepted draft: nothing breaks with stock vLLM, the history is wrong."""
    requests, _ = sequences
    for number in range(STEPS):
        assert requests.step([1 + number % 3] * REQUESTS, lambda _length: 1) < ROUNDING
