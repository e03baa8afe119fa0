"""Run all variants over the same text."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from tqdm import tqdm

from gb10_lab.quality.figures import Figures, Sums, summarise
from gb10_lab.quality.variants import REFERENCE, Variant
from gb10_lab.testbed import checkpoint
from gb10_lab.testbed.architecture import Architecture

_ROWS = 128
"""Predictions that are compared at once: 6 MB in float64, which the allocator keeps for the next ones."""


def evaluate(arch: Architecture, variants: Sequence[Variant], tokens: torch.Tensor) -> dict[str, Figures]:
    """Measure every variant on the windows `tokens`, int64 `[windows, window]`; a bar shows the progress.

    The first variant is the BF16 row. Each core takes one window at a time: no operator waits for another
    core, and no sum depends on how many there are. Raises UserError when the tensors do not fit `arch`.
    """
    arch = dataclasses.replace(arch, mtp=False)
    models = [checkpoint.from_tensors(arch, variant.tensors) for variant in variants]
    sums = {variant.key: Sums.zeros(tokens.shape[0]) for variant in variants}

    @torch.inference_mode()
    def measure(window: int) -> None:
        inputs, targets = tokens[window, None, :-1], tokens[window, 1:]
        reference: torch.Tensor | None = None
        for variant, model in zip(variants, models, strict=True):
            logits = model.logits(model(inputs, variant.site), variant.site)[0]
            reference = logits if reference is None else reference
            for rows in zip(
                *(torch.split(each, _ROWS) for each in (logits, reference, targets)), strict=True
            ):
                ours, theirs = (part.double().log_softmax(-1) for part in rows[:2])
                sums[variant.key].add(window, ours, theirs, rows[2])

    with one_thread(), ThreadPoolExecutor(cores()) as pool:
        done = pool.map(measure, range(tokens.shape[0]))
        for _ in tqdm(done, total=tokens.shape[0], desc="quality", unit="window", disable=None, leave=False):
            pass
    sizes = {variant.key: variant.bytes for variant in variants}
    return summarise(sums, REFERENCE, tokens.shape[1] - 1, sizes)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let every torch operator run on the thread that calls it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
