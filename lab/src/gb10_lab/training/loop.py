"""The training loop that both stages share."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gb10_lab.training.muon import Optimiser

_WARMUP = 0.02
_COOLDOWN = 0.6
_POINTS = 200
_PRINT_SECONDS = 4.0
_SETTLE = 10


@dataclass(frozen=True)
class Plan:
    """How long and how fast a stage trains."""

    tokens: int
    batch: int
    """Windows per step."""
    length: int
    """Tokens per window."""
    rate: float
    """The highest learning rate."""
    minutes: float
    """The stage stops after this time even if tokens are left."""
    seed: int

    @property
    def steps(self) -> int:
        """Steps that the tokens make, the last one filled up."""
        return math.ceil(self.tokens / (self.batch * self.length))


@dataclass
class Progress:
    """What happened."""

    steps: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    """Without the first steps, in which torch compiles."""
    stopped_early: bool = False
    curve: list[list[float]] = field(default_factory=list)
    """Tokens seen, and the mean loss since the point before."""

    def record(self, plan: Plan) -> dict[str, Any]:
        """Give what the training record keeps."""
        return {
            "tokens": self.steps * plan.batch * plan.length,
            "tokens_planned": plan.tokens,
            "batch": plan.batch,
            "length": plan.length,
            "steps": self.steps,
            "learning_rate": plan.rate,
            "warmup_share": _WARMUP,
            "cooldown_share": _COOLDOWN,
            "optimizer": "Muon for hidden matrices, AdamW (0.9, 0.95) for the rest; decay 0.1; clip 1.0",
            "seed": plan.seed,
            "seconds": round(self.seconds, 1),
            "tokens_per_second": round(self.tokens_per_second),
            "stopped_early": self.stopped_early,
            "curve": self.curve,
        }


def rate_factor(done: float) -> float:
    """Give the share of the highest learning rate at the share `done` of the token budget.

    A short warm-up, a plateau, then a straight line to 0.
    """
    return min(1.0, done / _WARMUP, (1.0 - done) / _COOLDOWN)


def optimise(
    plan: Plan,
    parameters: Iterable[tuple[str, nn.Parameter]],
    head_size: int,
    data: Iterator[Tensor],
    loss_of: Callable[[Tensor], tuple[Tensor, Tensor]],
    label: str,
) -> Progress:
    """Train on batches from `data`: int64 [batch, length + 1].

    `loss_of` gives the loss to descend and the one to report. Prints a line every few seconds.
    """
    optimiser = Optimiser(parameters, plan.rate, head_size)
    progress = Progress()
    start = printed = time.monotonic()
    settled: tuple[int, float] | None = None
    every = max(1, plan.steps // _POINTS)
    sums: list[Tensor] = []
    for step in range(plan.steps):
        loss, reported = loss_of(next(data))
        loss.backward()
        optimiser.step(rate_factor((step + 0.5) / plan.steps))
        sums.append(reported.detach())
        progress.steps = step + 1
        if (step + 1) % every and step + 1 != plan.steps and step + 1 != _SETTLE:
            continue
        mean = float(torch.stack(sums).mean())  # waits for the device
        sums = []
        now = time.monotonic()
        tokens = (step + 1) * plan.batch * plan.length
        progress.curve.append([tokens, round(mean, 4)])
        if settled is None and step + 1 >= _SETTLE:
            settled = (step + 1, now)
        elif settled is not None:
            progress.tokens_per_second = (
                (step + 1 - settled[0]) * plan.batch * plan.length / (now - settled[1])
            )
        if now - printed > _PRINT_SECONDS or step + 1 == plan.steps:
            printed = now
            _print(label, plan, progress, now - start)
        if not math.isfinite(mean):
            raise FloatingPointError(f"{label}: the loss is {mean} at step {step + 1}")
        if now - start > plan.minutes * 60 and step + 1 < plan.steps:
            progress.stopped_early = True
            print(f"{label}: stopped after {plan.minutes} minutes", flush=True)
            break
    progress.seconds = time.monotonic() - start
    return progress


def _print(label: str, plan: Plan, progress: Progress, seconds: float) -> None:
    speed = progress.tokens_per_second
    left = (plan.steps - progress.steps) * plan.batch * plan.length / speed if speed else float("nan")
    print(
        f"{label} {progress.steps}/{plan.steps}  loss {progress.curve[-1][1]:.4f}"
        f"  rate {plan.rate * rate_factor(progress.steps / plan.steps):.5f}"
        f"  {speed / 1000:.1f} K tokens/s  {seconds:.0f} s, {left:.0f} s left",
        flush=True,
    )
