"""The accepted-token count must never lead a GDN or KDA kernel out of its request's own state.

A discarded request arrives with 0 accepted tokens, a stale one with more than its row has slots. The kernels
use ``accepted - 1`` as an index; without the patch they continue from another request's state.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import interpreted_kernels
import numpy as np
import pytest
from interpreted_kernels import DRAFTS, RECURRENT, run_conv, run_recurrent

REASON = interpreted_kernels.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(
        max_workers=1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=interpreted_kernels.start_process,
    ) as pool:
        yield pool


@pytest.mark.parametrize(
    ("accepted", "meant"),
    [
        pytest.param([1, 0], [1, 1], id="zero-takes-the-first-slot"),
        pytest.param([3, 1], [2, 1], id="too-many-takes-the-last-slot"),
        pytest.param([0, 4], [1, 2], id="both"),
    ],
)
@pytest.mark.parametrize("kernel", RECURRENT)
def test_recurrent_kernels_stay_in_the_row(
    interpreter: ProcessPoolExecutor, kernel: str, accepted: list[int], meant: list[int]
) -> None:
    out, pool = interpreter.submit(run_recurrent, kernel, accepted).result()
    expected_out, expected_pool = interpreter.submit(run_recurrent, kernel, meant).result()
    np.testing.assert_array_equal(out, expected_out)
    np.testing.assert_array_equal(pool, expected_pool)


@pytest.mark.parametrize("kernel", RECURRENT)
def test_recurrent_kernels_still_take_the_accepted_slot(
    interpreter: ProcessPoolExecutor, kernel: str
) -> None:
    """One new token after two accepted ones starts from slot 1: the bound is the row, not the step."""
    after_one, _ = interpreter.submit(run_recurrent, kernel, [1, 1]).result()
    after_two, _ = interpreter.submit(run_recurrent, kernel, [2, 2]).result()
    assert np.isfinite(after_one).all()
    assert not np.isclose(after_one, after_two).any()


@pytest.mark.parametrize("drafted", [1, DRAFTS + 1])
@pytest.mark.parametrize(
    ("accepted", "meant"),
    [
        pytest.param([1, 0], [1, 1], id="zero-takes-the-first-window"),
        pytest.param([3, 1], [2, 1], id="too-many-takes-the-last-window"),
        pytest.param([0, 3], [1, 2], id="both"),
    ],
)
def test_conv_stays_in_the_cache_line(
    interpreter: ProcessPoolExecutor, drafted: int, accepted: list[int], meant: list[int]
) -> None:
    out, cache = interpreter.submit(run_conv, accepted, drafted).result()
    expected_out, expected_cache = interpreter.submit(run_conv, meant, drafted).result()
    np.testing.assert_array_equal(out, expected_out)
    np.testing.assert_array_equal(cache, expected_cache)


def test_conv_still_takes_the_accepted_window(interpreter: ProcessPoolExecutor) -> None:
    after_one, _ = interpreter.submit(run_conv, [1, 1], 1).result()
    after_two, _ = interpreter.submit(run_conv, [2, 2], 1).result()
    assert np.isfinite(after_one).all()
    assert not np.isclose(after_one, after_two).any()
