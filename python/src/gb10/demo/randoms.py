"""Random tensors that have the same bits on every machine.

Each tensor has its own stream, seeded by the model's seed and the tensor's name, so adding one changes no
other. Raw PCG64 output is used: numpy promises that it never changes, and only exact operations follow it
(no log, no cosine, whose last bit depends on the machine).
"""

import math
import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_DRAWS = 4
_STEPS = 2**16
_MEAN = _DRAWS * (_STEPS - 1) / 2
_DEVIATION = (_DRAWS * (_STEPS**2 - 1) / 12) ** 0.5


def normal(seed: int, name: str, shape: tuple[int, ...], deviation: float) -> torch.Tensor:
    """Give float32 numbers of mean 0 and the given standard deviation, nearly normally distributed.

    Each one is the sum of four 16-bit integers. Its magnitude is at most 3.47 deviations.
    """
    total = _raw(seed, name, math.prod(shape)).view(np.uint16).reshape(-1, _DRAWS).sum(axis=1, dtype=np.int64)
    return _as_float32((total - _MEAN) * (deviation / _DEVIATION), shape)


def uniform(seed: int, name: str, shape: tuple[int, ...], low: float, high: float) -> torch.Tensor:
    """Give float32 numbers, evenly distributed from `low` up to `high`."""
    unit = (_raw(seed, name, math.prod(shape)) >> np.uint64(11)) * 2.0**-53
    return _as_float32(low + unit * (high - low), shape)


def permutation(seed: int, name: str, count: int) -> list[int]:
    """Give the numbers below `count` in a random order."""
    keys = _raw(seed, name, count)
    return [int(index) for index in np.argsort(keys, kind="stable")]


def _raw(seed: int, name: str, count: int) -> NDArray[np.uint64]:
    generator = np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
    raw: NDArray[np.uint64] = generator.random_raw(count)
    return raw


def _as_float32(values: NDArray[np.floating[Any]], shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)
