"""A reduced draft vocabulary for Qwen3-Next's multi-token prediction (MTP) head.

A draft may only be one of N token ids, the most frequent ones of a text. Then each draft step reads N rows of
the output head instead of all. Rejected drafts are replaced by the target as ever, so what is generated does
not change; how many drafts are accepted does.

GB10_DRAFT_VOCABULARY turns it on (`gb10.vllm_plugin.draft.ids`), on every platform of vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from gb10.errors import UserError
from gb10.vllm_plugin.cuda.requant.names import ATTRIBUTE
from gb10.vllm_plugin.draft.ids import ENV_NAME

ROWS = "draft_head"
IDS = "draft_token_ids"


class Rows(Protocol):
    """A requantised matrix [N, H] (`gb10.vllm_plugin.cuda.requant.dense.Dense`)."""

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]: ...

    def select(self, rows: torch.Tensor) -> Rows: ...

    def forward(self, x: torch.Tensor) -> torch.Tensor: ...


def restrict(model: Any, ids: Sequence[int] | None) -> None:
    """Let the Qwen3NextMTP `model` draft only tokens of `ids`; None: all tokens again.

    Copies the rows of its output head: [len(ids), hidden size] in the head's dtype, on its device; of a head
    that gb10 has requantised (`--head`) in its format, so that drafts read as few bytes a row as the target.
    The model must be that of `gb10.vllm_plugin.draft.model`. Not for one whose CUDA graphs are captured
    already: they keep what they had.

    Raises UserError for a head that the checkpoint has quantised, and for one that several GPUs share.
    """
    if ids is None:
        model.__dict__.pop(ROWS, None)
        model.__dict__.pop(IDS, None)
        return
    head = model.lm_head
    if head.tp_size != 1:
        raise UserError(f"{ENV_NAME} needs tensor parallel size 1; it is {head.tp_size}")
    made: Rows | None = head.__dict__.get(ATTRIBUTE)
    if made is not None:
        index = torch.tensor(ids, dtype=torch.int64, device=next(iter(made.tensors.values())).device)
        model.__dict__[ROWS] = made.select(index)
        model.__dict__[IDS] = index
        return
    weight = _weight(head)
    if weight is None or not weight.is_floating_point() or weight.element_size() < 2 or weight.ndim != 2:
        raise UserError(f"{ENV_NAME} needs an output head (lm_head) in BF16, FP16 or FP32; unset it")
    # Not as registered buffers: those would become part of what the loader expects.
    index = torch.tensor(ids, dtype=torch.int64, device=weight.device)
    model.__dict__[ROWS] = weight.detach().index_select(0, index)
    model.__dict__[IDS] = index


def _weight(head: Any) -> torch.Tensor | None:
    """The matrix of an output head, [vocabulary, hidden size], or what it has in its place.

    vLLM's CPU linear layers keep a packed copy and an empty weight. What they make of the identity is the
    matrix: each sum has one term that is not zero.
    """
    weight: torch.Tensor | None = getattr(head, "weight", None)
    if weight is None or weight.numel() or not hasattr(head, "cpu_linear"):
        return weight
    identity = torch.eye(head.embedding_dim, dtype=weight.dtype, device=weight.device)
    made: torch.Tensor = head.quant_method.apply(head, identity)
    return made.T


def draft_logits(
    hidden: torch.Tensor, rows: torch.Tensor | Rows, ids: torch.Tensor, vocabulary: int
) -> torch.Tensor:
    """Logits of the target's vocabulary from the rows of some tokens; -inf for all others.

    hidden: [T, H]; rows: [N, H]; ids: [N] int64; result: [T, vocabulary] in the rows' dtype, of requantised
    rows in that of the hidden states. The whole width is what argmax, sampling and rejection sampling of vLLM
    take, so all of them work unchanged.
    """
    some = F.linear(hidden.to(rows.dtype), rows) if torch.is_tensor(rows) else rows.forward(hidden)
    full = some.new_full((*some.shape[:-1], vocabulary), float("-inf"))
    return full.index_copy_(-1, ids, some)
