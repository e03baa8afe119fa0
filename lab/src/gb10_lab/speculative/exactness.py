"""How far an engine's log-probabilities are from those of the same weights in float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gb10_lab.quality.evaluate import one_thread
from gb10_lab.quality.variants import dequantised
from gb10_lab.testbed import checkpoint


@dataclass(frozen=True)
class Scored:
    """Token ids of a prompt with its greedy completion, and what the engine gave them."""

    ids: tuple[int, ...]
    prompt: int
    """How many of the ids are the prompt's."""
    logprobs: tuple[float, ...]
    """Log-probabilities (nats) of all ids but the first."""


@dataclass(frozen=True)
class Error:
    """Differences of log-probabilities, in nats."""

    tokens: int
    mean: float
    """Signed: below 0 the engine gives less than float32 does."""
    rms: float
    high: float
    """The 99th percentile of the magnitudes."""
    largest: float

    @classmethod
    def of(cls, differences: torch.Tensor) -> Error:
        """Summarise one difference for each token."""
        size = differences.double().abs()
        return cls(
            differences.numel(),
            float(differences.double().mean()),
            float(size.square().mean().sqrt()),
            float(size.quantile(0.99)),
            float(size.max()),
        )


@dataclass(frozen=True)
class Errors:
    """Of tokens that were read, and of those that were generated."""

    prompts: Error
    completions: Error


class Float32:
    """The model of a checkpoint, computed in float32: NVFP4 weights are rounded once to BF16, as on a CPU."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError for a folder that is no testbed model."""
        arch = dataclasses.replace(checkpoint.read_architecture(folder), mtp=False)
        tensors = dequantised(checkpoint.read_tensors(folder))
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("mtp.")}
        self._model = checkpoint.from_tensors(arch, kept)

    @torch.inference_mode()
    def logprobs(self, ids: Sequence[int]) -> torch.Tensor:
        """Log-probabilities of all ids but the first: float64 [len(ids) - 1]."""
        tokens = torch.tensor([ids])
        logits = self._model.logits(self._model(tokens[:, :-1]))
        return logits[0].double().log_softmax(-1).gather(-1, tokens[0, 1:, None]).squeeze(-1)

    def errors(self, scored: Sequence[Scored]) -> Errors:
        """Compare all tokens; each completion is its engine's own, so all that differs is arithmetic."""
        prompts, completions = [], []
        with one_thread():
            for one in scored:
                difference = torch.tensor(one.logprobs, dtype=torch.float64) - self.logprobs(one.ids)
                prompts.append(difference[: one.prompt - 1])
                completions.append(difference[one.prompt - 1 :])
        return Errors(Error.of(torch.cat(prompts)), Error.of(torch.cat(completions)))
