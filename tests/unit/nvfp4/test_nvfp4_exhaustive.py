"""Every one of the 2^32 float32 bit patterns through the encoders.

The oracle is independent of the code under test: it rounds exact rational numbers, finds by bisection the bit
patterns where the answer changes, and so knows the answer for whole runs of patterns. Then every pattern of
each run is encoded.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from exact_oracle import F32_INFINITY, F32_MAGNITUDES, e2m1_values, first_patterns, ue4m3_values

from gb10.nvfp4 import e2m1, ue4m3

CHUNK = 2**18
PATTERNS = 2**32


class Run(NamedTuple):
    """The patterns from `start` up to `stop` (not included) all have the answer `code`."""

    start: int
    stop: int
    code: int


def magnitude_runs(first: list[int], nan_code: int) -> list[Run]:
    """Cover all patterns without a sign: one run for each code, then NaN."""
    stops = [*first[1:], F32_INFINITY + 1]
    runs = [Run(start, stop, code) for code, (start, stop) in enumerate(zip(first, stops, strict=True))]
    return [*runs, Run(F32_INFINITY + 1, F32_MAGNITUDES, nan_code)]


def check_run(encode: Callable[[torch.Tensor], torch.Tensor], run: Run) -> int:
    """Encode every pattern of the run and compare. Returns how many there were."""
    counting = torch.arange(CHUNK, dtype=torch.int32)
    for start in range(run.start, run.stop, CHUNK):
        size = min(CHUNK, run.stop - start)
        # int32 holds the same 32 bits: patterns with the sign bit are its negative numbers.
        patterns = counting[:size] + (start if start < F32_MAGNITUDES else start - PATTERNS)
        codes = encode(patterns.view(torch.float32))
        assert codes.shape == (size,)
        if int(codes.min()) != run.code or int(codes.max()) != run.code:
            wrong = int((codes != run.code).nonzero()[0])
            pytest.fail(f"bits 0x{start + wrong:08x}: got 0x{int(codes[wrong]):x}, expected 0x{run.code:x}")
    return run.stop - run.start


def assert_gapless(runs: list[Run], stop: int) -> None:
    """Check that the runs follow each other without a gap, from 0 up to `stop`."""
    assert [run.start for run in runs] == [0, *(run.stop for run in runs[:-1])]
    assert runs[-1].stop == stop
    assert all(run.start < run.stop for run in runs)


@pytest.mark.usefixtures("one_thread")
def test_e2m1_encode_on_all_float32() -> None:
    positive = magnitude_runs(first_patterns(e2m1_values()), nan_code=0x7)
    negative = [
        Run(run.start + F32_MAGNITUDES, run.stop + F32_MAGNITUDES, run.code | 0x8) for run in positive[:-1]
    ]
    negative_nan = Run(negative[-1].stop, PATTERNS, 0x7)
    runs = [*positive, *negative, negative_nan]
    assert_gapless(runs, PATTERNS)
    assert sum(check_run(e2m1.encode, run) for run in runs) == PATTERNS


@pytest.mark.usefixtures("one_thread")
def test_ue4m3_encode_on_all_non_negative_float32_and_all_nan() -> None:
    positive = magnitude_runs(first_patterns(ue4m3_values()), nan_code=0x7F)
    assert_gapless(positive, F32_MAGNITUDES)
    negative_nan = Run(F32_MAGNITUDES + F32_INFINITY + 1, PATTERNS, 0x7F)
    assert sum(check_run(ue4m3.encode, run) for run in positive) == F32_MAGNITUDES
    assert check_run(ue4m3.encode, negative_nan) == 2**23 - 1
