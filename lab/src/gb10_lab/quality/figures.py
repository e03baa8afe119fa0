"""What is measured of a variant, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

RESAMPLES = 2000
"""Bootstrap samples. They give a standard error within 2 %."""


@dataclass
class Sums:
    """Sums over the predictions of each window, float64 `[windows]`."""

    loss: torch.Tensor
    """Negative log likelihood of the text, nats."""
    same_top: torch.Tensor
    """Predictions whose likeliest token is that of the BF16 model."""
    kl: torch.Tensor
    """KL(BF16 || variant), nats."""

    @classmethod
    def zeros(cls, windows: int) -> Sums:
        """Nothing summed yet."""
        return cls(*(torch.zeros(windows, dtype=torch.float64) for _ in range(3)))

    def add(self, window: int, ours: torch.Tensor, reference: torch.Tensor, targets: torch.Tensor) -> None:
        """Add predictions to the sums of one window.

        `ours` and `reference` are log probabilities `[T, vocabulary]` of the variant and of the BF16 model,
        in float64: a KL of 1e-6 is a sum of numbers that nearly cancel each other. `targets` is int64 `[T]`,
        the token that follows each position. All three are on one device, any.
        """
        self.loss[window] -= ours.gather(-1, targets.unsqueeze(-1)).sum().cpu()
        self.same_top[window] += (ours.argmax(-1) == reference.argmax(-1)).sum().cpu()
        self.kl[window] += (reference.exp() * (reference - ours)).sum().cpu()

    def first(self, windows: int) -> Sums:
        """Those of the first ``windows``."""
        return Sums(self.loss[:windows], self.same_top[:windows], self.kl[:windows])


@dataclass(frozen=True)
class Figures:
    """One row of the table. Each `..._error` is a standard error (bootstrap over windows)."""

    perplexity: float
    perplexity_error: float
    change: float
    """Of the perplexity against BF16, a share (0.01 is 1 %)."""
    change_error: float
    top1: float
    """Share of predictions whose likeliest token is BF16's."""
    top1_error: float
    kl: float
    """Mean KL(BF16 || variant), nats a token."""
    kl_error: float
    bytes: int
    """Bytes of weights that one decoded token reads."""


def summarise(
    sums: Mapping[str, Sums], reference: str, predictions: int, sizes: Mapping[str, int]
) -> dict[str, Figures]:
    """Give the figures of each variant by its key.

    `reference` is the key of the BF16 row, `predictions` how many each window has, `sizes` the bytes a token.
    The windows are resampled together for all rows: the error of a change is that of the paired difference.
    """
    base = sums[reference].loss / predictions
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(base.numel(), (RESAMPLES, base.numel()), generator=generator)

    def error(values: torch.Tensor, *, exponent: bool = False) -> float:
        means = values[picks].mean(-1)
        return float((means.exp() if exponent else means).std())

    figures = {}
    for key, each in sums.items():
        loss, top1, kl = each.loss / predictions, each.same_top / predictions, each.kl / predictions
        figures[key] = Figures(
            perplexity=float(loss.mean().exp()),
            perplexity_error=error(loss, exponent=True),
            change=float((loss - base).mean().expm1()),
            change_error=error(loss - base, exponent=True),
            top1=float(top1.mean()),
            top1_error=error(top1),
            kl=float(kl.mean()),
            kl_error=error(kl),
            bytes=sizes[key],
        )
    return figures
