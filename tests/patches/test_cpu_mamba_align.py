"""MTP with prefix caching on the CPU: vLLM's two fused state-copy kernels need a stand-in there.

Without the patch the engine dies at the first request, after ``/health`` is green. With it, both sides do the
same: Triton's interpreter runs vLLM's kernels, the CPU its stand-ins, on the same states.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import interpreted_kernels
import numpy as np
import pytest
from interpreted_mamba_align import Step, copy_states

REASON = interpreted_kernels.missing()
PRECOPY = "precopy_mamba_align_fused_kernel"
POSTPROCESS = "postprocess_mamba_fused_kernel"

STEPS = {
    # A block is 4 tokens. Request 0 stays in its block, 1 enters the next one, 2 is new.
    "one-of-each": Step((1, 2, 1), (1, 2, 0), (1, 3, 2), (5, 6, 0), (0, 2, 0), (1, 1, -1), (0, 1, 0)),
    # All drafts are accepted, over a boundary inside of the block that is written, exactly on it and past it.
    "over-a-boundary": Step((3, 3, 3), (1, 1, 2), (3, 3, 3), (4, 5, 6), (2, 2, 2), (0, 0, 1), (2, 2, 2)),
    # The state at the boundary already is where it belongs.
    "nothing-to-move": Step((1, 1, 1), (0, 1, 2), (1, 1, 1), (3, 7, 11), (0, 0, 0), (0, 1, 2), (0, 0, 0)),
    "long-prefill": Step((1, 1, 1), (3, 2, 1), (16, 12, 8), (0, 0, 0), (0, 0, 0), (-1, -1, -1), (0, 0, 0)),
    "one-draft": Step((2, 1, 2), (1, 1, 0), (2, 2, 2), (6, 6, 2), (1, 1, 1), (0, 1, 0), (1, 0, 1)),
}


def registered() -> set[str]:
    """Return the kernels of ``mamba_utils`` that the CPU platform replaces."""
    from vllm.platforms.cpu import CpuPlatform
    from vllm.triton_utils import dispatcher

    prefix = "vllm.v1.worker.mamba_utils."
    if not any(name.startswith(prefix) for name in dispatcher._registry):
        CpuPlatform.register_triton_kernel_overrides()
    return {name.removeprefix(prefix) for name in dispatcher._registry if name.startswith(prefix)}


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
def test_the_cpu_platform_replaces_both_kernels() -> None:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("this vllm is not built for the CPU")
    assert {PRECOPY, POSTPROCESS} <= registered()


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    if REASON is not None:
        pytest.skip(REASON)
    with ProcessPoolExecutor(
        max_workers=1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=interpreted_kernels.start_process,
    ) as pool:
        yield pool


@pytest.mark.parametrize("dim_first", [False, True])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kernel", [PRECOPY, POSTPROCESS])
def test_the_stand_ins_do_what_the_kernels_do(
    interpreter: ProcessPoolExecutor, kernel: str, step: str, dim_first: bool
) -> None:
    states, accepted = copy_states(kernel, STEPS[step], dim_first, triton=False)
    expected, expected_accepted = interpreter.submit(
        copy_states, kernel, STEPS[step], dim_first, triton=True
    ).result()
    assert accepted == expected_accepted
    for state, other in zip(states, expected, strict=True):
        np.testing.assert_array_equal(state, other)
