"""Two codes per byte."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gb10.nvfp4 import e2m1, pack, packing, unpack

SHAPES = st.tuples(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=5), st.integers(0, 20)).map(
    lambda shape: (*shape[0], shape[1] * 2)
)
CODES = SHAPES.flatmap(lambda shape: hnp.arrays(np.uint8, shape, elements=st.integers(0, 15)))
BYTES = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9))


def test_even_index_is_the_low_nibble() -> None:
    assert pack(torch.tensor([0x1, 0xA, 0xF, 0x0], dtype=torch.uint8)).tolist() == [0xA1, 0x0F]


@given(CODES)
def test_unpack_undoes_pack(array: np.ndarray) -> None:
    codes = torch.from_numpy(array)
    packed = pack(codes)
    assert packed.shape == (*codes.shape[:-1], codes.shape[-1] // 2)
    assert torch.equal(unpack(packed), codes)


@given(BYTES)
def test_pack_undoes_unpack(array: np.ndarray) -> None:
    packed = torch.from_numpy(array)
    assert torch.equal(pack(unpack(packed)), packed)


@given(BYTES)
def test_decode_bytes_is_unpack_then_decode(array: np.ndarray) -> None:
    packed = torch.from_numpy(array)
    wanted = e2m1.decode(unpack(packed))
    assert torch.equal(packing.decode_bytes(packed).view(torch.int32), wanted.view(torch.int32))


def test_strided_input() -> None:
    codes = torch.randint(0, 16, (6, 8), dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes.t()[:, ::3])), codes.t()[:, ::3])


def test_errors() -> None:
    with pytest.raises(ValueError, match="even number"):
        pack(torch.zeros(2, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="even number"):
        pack(torch.tensor(1, dtype=torch.uint8))
    with pytest.raises(ValueError, match="got 16"):
        pack(torch.tensor([16, 0], dtype=torch.uint8))
    with pytest.raises(TypeError, match="uint8"):
        pack(torch.zeros(2, dtype=torch.int32))
    for undo in (unpack, packing.decode_bytes):
        with pytest.raises(TypeError, match="uint8"):
            undo(torch.zeros(2))
        with pytest.raises(ValueError, match="one dimension"):
            undo(torch.tensor(1, dtype=torch.uint8))
