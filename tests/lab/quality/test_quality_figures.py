"""The statistics, against numbers that are computed otherwise."""

import math

import pytest
import torch

from gb10_lab.quality.figures import Figures, Sums, summarise

WINDOWS, LENGTH, VOCABULARY = 12, 40, 30


def logits(seed: int) -> torch.Tensor:
    return 2 * torch.randn(WINDOWS, LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(seed))


TARGETS = torch.randint(VOCABULARY, (WINDOWS, LENGTH), generator=torch.Generator().manual_seed(9))
REFERENCE = logits(0)


def log_p(raw: torch.Tensor) -> torch.Tensor:
    return raw.double().log_softmax(-1)


def figures_of(changed: torch.Tensor) -> dict[str, Figures]:
    sums = {"bf16": Sums.zeros(WINDOWS), "other": Sums.zeros(WINDOWS)}
    for window, (base, other, targets) in enumerate(zip(REFERENCE, changed, TARGETS, strict=True)):
        sums["bf16"].add(window, log_p(base), log_p(base), targets)
        sums["other"].add(window, log_p(other), log_p(base), targets)
    return summarise(sums, "bf16", LENGTH, {"bf16": 200, "other": 100})


def test_figures_are_those_of_torch() -> None:
    changed = REFERENCE + 0.3 * logits(1)
    measured = figures_of(changed)["other"]
    loss = torch.nn.functional.cross_entropy(changed.flatten(0, 1), TARGETS.flatten())
    base = torch.nn.functional.cross_entropy(REFERENCE.flatten(0, 1), TARGETS.flatten())
    assert measured.perplexity == pytest.approx(float(loss.exp()), rel=1e-5)
    assert measured.change == pytest.approx(float((loss - base).exp()) - 1, rel=1e-4)
    divergence = (
        torch.nn.functional.kl_div(
            log_p(changed),
            log_p(REFERENCE),
            log_target=True,
            reduction="none",
        )
        .sum(-1)
        .mean()
    )
    assert measured.kl == pytest.approx(float(divergence), rel=1e-9)
    same = (changed.argmax(-1) == REFERENCE.argmax(-1)).float().mean()
    assert 0.5 < measured.top1 < 1
    assert measured.top1 == pytest.approx(float(same), abs=1e-6)
    assert measured.bytes == 100


def test_the_reference_differs_from_itself_in_nothing() -> None:
    base = figures_of(REFERENCE)["bf16"]
    assert (base.change, base.change_error, base.top1, base.kl, base.kl_error) == (0, 0, 1, 0, 0)
    assert base.perplexity > 10


def test_a_tiny_kl_is_not_lost_in_rounding() -> None:
    """A shift of one logit by 1e-4 has a KL of p (1 - p) 1e-8 / 2, which float32 sums would bury."""
    step = torch.zeros(VOCABULARY)
    step[3] = 1e-4
    measured = figures_of(REFERENCE + step)["other"]
    p = REFERENCE.double().softmax(-1)[..., 3]
    # What is shifted by is not 1e-4 everywhere: float32 has its steps.
    assert measured.kl == pytest.approx(float((p * (1 - p)).mean()) * 1e-8 / 2, rel=0.02)


def test_the_bootstrap_agrees_with_the_formula_for_the_error_of_a_mean() -> None:
    measured = figures_of(REFERENCE + 0.3 * logits(1))["other"]
    kl = (log_p(REFERENCE).exp() * (log_p(REFERENCE) - log_p(REFERENCE + 0.3 * logits(1)))).sum(-1).mean(-1)
    expected = float(kl.std(correction=0)) / math.sqrt(WINDOWS)
    assert measured.kl_error == pytest.approx(expected, rel=0.1)


def test_the_error_of_a_change_is_that_of_the_paired_difference() -> None:
    """A change that is the same in every window is known well, however much the windows differ."""
    harder = REFERENCE * torch.linspace(0.2, 3, WINDOWS).reshape(-1, 1, 1)
    sums = {key: Sums.zeros(WINDOWS) for key in ("bf16", "other")}
    for window, logits in enumerate(harder):
        sums["bf16"].add(window, log_p(logits), log_p(logits), TARGETS[window])
    sums["other"].loss = sums["bf16"].loss + 0.1 * LENGTH
    measured = summarise(sums, "bf16", LENGTH, {"bf16": 2, "other": 1})["other"]
    assert measured.change == pytest.approx(math.expm1(0.1))
    assert measured.change_error < 1e-9
    assert measured.perplexity_error > 1
