"""The operators of our kernels in torch without a GPU: their schemas, or the tests of what they refuse.

usage: operators.py schemas, or operators.py test [ARGUMENT OF PYTEST…]

``GB10_KERNELS`` names the library, ``GB10_CUDA_TOOLKIT`` the folder of CUDA's runtime.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


class Operators:
    """Of the tests, those that call an operator."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep what asks for the loaded operators, and not for the machine code."""
        names = [set(getattr(item, "fixturenames", ())) for item in items]
        items[:] = [
            item
            for item, asked in zip(items, names, strict=True)
            if "operators" in asked and "machine_code" not in asked
        ]


def main(mode: str, *arguments: str) -> int:
    """Print the schemas, or run the tests."""
    # Before torch: one that is built for CUDA comes with a runtime, or with a stand-in for it.
    ctypes.CDLL(os.environ["GB10_CUDA_TOOLKIT"] + "/lib/libcudart.so.13", mode=ctypes.RTLD_GLOBAL)
    if mode == "test":
        import pytest

        return int(pytest.main(list(arguments), plugins=[Operators()]))
    import torch

    from gb10.kernels.library import KERNELS, load

    load()
    for name in KERNELS.operators:
        print(getattr(torch.ops.gb10, name).default._schema)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
