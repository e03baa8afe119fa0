"""Functions in the place of the aliases of ``triton.language`` that vLLM's kernel modules keep.

The interpreter replaces the functions inside of ``triton.language``; a module's own alias of one escapes it.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def exp(x: Any) -> Any:
    return tl.exp(x)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def log(x: Any) -> Any:
    return tl.log(x)
