"""Qwen3-Next's MTP model with the draft vocabulary of GB10_DRAFT_VOCABULARY."""

import logging
from collections.abc import Iterable

import torch
from vllm import ModelRegistry
from vllm.model_executor.models import qwen3_next_mtp

from gb10.errors import UserError
from gb10.vllm_plugin.draft.ids import ENV_NAME, DraftVocabulary
from gb10.vllm_plugin.draft.vocabulary import IDS, ROWS, draft_logits, restrict

logger = logging.getLogger(__name__)


class Qwen3NextMTP(qwen3_next_mtp.Qwen3NextMTP):  # type: ignore[misc]  # vLLM is untyped for mypy
    """vLLM's own; where `vocabulary.restrict` has said so, it drafts some tokens only."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        loaded: set[str] = super().load_weights(weights)
        # Here the model still has an output head of its own, with the checkpoint's rows. Later it gets the
        # target's. Memory taken now is seen by vLLM when it sizes the KV cache.
        if (vocabulary := DraftVocabulary.from_env()) is not None:
            vocabulary.check(self.config.vocab_size)
            head = "model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"
            if head not in loaded:
                raise UserError(f"{ENV_NAME} needs a checkpoint with its own lm_head.weight; unset it")
            restrict(self, vocabulary.ids)
            logger.info(
                "gb10: drafts are chosen from %d of %d tokens", len(vocabulary.ids), self.config.vocab_size
            )
        return loaded

    def compute_logits(self, hidden_states: torch.Tensor, spec_step_idx: int = 0) -> torch.Tensor | None:
        rows = self.__dict__.get(ROWS)
        if rows is None:
            logits: torch.Tensor | None = super().compute_logits(hidden_states, spec_step_idx)
            return logits
        return draft_logits(hidden_states, rows, self.__dict__[IDS], self.config.vocab_size)


def install() -> None:
    """Have vLLM build this class for the architecture Qwen3NextMTP."""
    ModelRegistry.register_model("Qwen3NextMTP", Qwen3NextMTP)
