"""How far an engine is from the same weights in float32: its log-probabilities, and the drafts it accepts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gb10_lab.quality.evaluate import one_thread
from gb10_lab.quality.variants import dequantised
from gb10_lab.speculative.acceptance import Counters
from gb10_lab.testbed import checkpoint, mtp


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


class Drafter:
    """The model of a checkpoint with its draft head, in float32.

    Another engine may draft for another text, and how many drafts are accepted differs more from text to text
    than by what an engine may get wrong. This says what of one text must have been accepted.
    """

    def __init__(self, folder: Path) -> None:
        """Raises UserError for a folder that is no testbed model."""
        self._device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        tensors = dequantised(checkpoint.read_tensors(folder))
        model = checkpoint.from_tensors(checkpoint.read_architecture(folder), tensors)
        self._model = model.to(self._device)

    @torch.inference_mode()
    def accepted(self, ids: Sequence[int], prompt: int, drafts: int) -> Counters:
        """What greedy decoding accepts of so many drafts a step. The first ``prompt`` ids are the prompt.

        Steps at the end whose drafts the text does not reach are left out.
        """
        # Causal: what follows the text changes nothing, and the head wants room for all its anchors.
        tokens = torch.tensor([[*ids, *[0] * (drafts + mtp.ALIGNMENT)]], device=self._device)
        states = mtp.unroll(self._model, tokens, self._model(tokens), drafts)
        guesses = [self._model.logits(state)[0].argmax(-1).tolist() for state in states]
        steps, accepted, anchor = 0, [0] * drafts, prompt - 1
        while anchor + drafts + 1 < len(ids):
            took = 0
            while took < drafts and guesses[took][anchor] == ids[anchor + took + 2]:
                accepted[took] += 1
                took += 1
            steps += 1
            anchor += took + 1
        return Counters(steps, tuple(accepted))


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
