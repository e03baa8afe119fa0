"""A reduced draft vocabulary for Qwen3-Next's multi-token prediction (MTP) head.

A draft may only be one of N token ids, the most frequent ones of a text. Then each draft step reads N rows of
the output head instead of all. Rejected drafts are replaced by the target as ever, so what is generated does
not change; how many drafts are accepted does.

GB10_DRAFT_VOCABULARY turns it on (`gb10.vllm_plugin.draft.ids`), on every platform of vLLM.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from gb10.errors import UserError
from gb10.vllm_plugin import compat
from gb10.vllm_plugin.draft.ids import ENV_NAME, DraftVocabulary

logger = logging.getLogger(__name__)

_MODEL = "vllm.model_executor.models.qwen3_next_mtp"

NEEDS: tuple[compat.Need, ...] = (
    compat.Need(_MODEL, "Qwen3NextMTP.compute_logits", ("self", "hidden_states", "spec_step_idx")),
    compat.Need(_MODEL, "Qwen3NextMTP.load_weights", ("self", "weights")),
)

_ROWS = "draft_head"
_IDS = "draft_token_ids"


def restrict(model: Any, ids: Sequence[int] | None) -> None:
    """Let the Qwen3NextMTP `model` draft only tokens of `ids`; None: all tokens again.

    Copies the rows of its output head: [len(ids), hidden size] in the head's dtype, on its device.
    `install` must have run. Not for a model whose CUDA graphs are captured already: they keep what they had.

    Raises UserError for a quantised head, and for a head that is split over several GPUs.
    """
    if ids is None:
        model.__dict__.pop(_ROWS, None)
        model.__dict__.pop(_IDS, None)
        return
    head = model.lm_head
    weight = getattr(head, "weight", None)
    if head.tp_size != 1:
        raise UserError(f"{ENV_NAME} needs tensor parallel size 1; it is {head.tp_size}")
    if weight is None or not weight.is_floating_point() or weight.element_size() < 2 or weight.ndim != 2:
        raise UserError(f"{ENV_NAME} needs an output head (lm_head) in BF16, FP16 or FP32; unset it")
    # Not as registered buffers: those would become part of what the loader expects.
    index = torch.tensor(ids, dtype=torch.int64, device=weight.device)
    model.__dict__[_ROWS] = weight.detach().index_select(0, index)
    model.__dict__[_IDS] = index


def draft_logits(
    hidden: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, vocabulary: int
) -> torch.Tensor:
    """Logits of the target's vocabulary from the rows of some tokens; -inf for all others.

    hidden: [T, H]; rows: [N, H]; ids: [N] int64; result: [T, vocabulary] in the rows' dtype. The whole width
    is what argmax, sampling and rejection sampling of vLLM take, so all of them work unchanged.
    """
    some = F.linear(hidden.to(rows.dtype), rows)
    full = some.new_full((*some.shape[:-1], vocabulary), float("-inf"))
    return full.index_copy_(-1, ids, some)


_installed = False


def install() -> None:
    """Teach vLLM's Qwen3NextMTP to draft from a reduced vocabulary. A second call does nothing.

    Why: vLLM reads the whole head for each draft, and a checkpoint cannot say otherwise (only EAGLE-3's can).
    Goes when: vLLM's MTP models know a draft vocabulary.

    Raises IncompatibleVllmError when vLLM's internals moved.
    """
    global _installed
    if _installed:
        return
    import vllm
    from vllm.model_executor.models.qwen3_next_mtp import Qwen3NextMTP

    compat.check(vllm.__version__, NEEDS)
    original_load, original_logits = Qwen3NextMTP.load_weights, Qwen3NextMTP.compute_logits

    def load_weights(self: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        loaded: set[str] = original_load(self, weights)
        # Here the model still has an output head of its own, with the checkpoint's rows. Later it gets the
        # target's. Memory taken now is seen by vLLM when it sizes the KV cache.
        if (vocabulary := DraftVocabulary.from_env()) is not None:
            vocabulary.check(self.config.vocab_size)
            if "lm_head.weight" not in loaded:
                raise UserError(f"{ENV_NAME} needs a checkpoint with its own lm_head.weight; unset it")
            restrict(self, vocabulary.ids)
            logger.info(
                "gb10: drafts are chosen from %d of %d tokens", len(vocabulary.ids), self.config.vocab_size
            )
        return loaded

    def compute_logits(self: Any, hidden_states: torch.Tensor, spec_step_idx: int = 0) -> torch.Tensor | None:
        rows = self.__dict__.get(_ROWS)
        if rows is None:
            logits: torch.Tensor | None = original_logits(self, hidden_states, spec_step_idx)
            return logits
        return draft_logits(hidden_states, rows, self.__dict__[_IDS], self.config.vocab_size)

    Qwen3NextMTP.load_weights = load_weights
    Qwen3NextMTP.compute_logits = compute_logits
    _installed = True
