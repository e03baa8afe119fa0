"""Finding and loading the libraries of operators."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from gb10 import libraries
from gb10.errors import UserError


class Library(NamedTuple):
    """A library of operators, and where it is looked for."""

    file: str
    package: str
    """The flake's package that has it."""

    variables: tuple[str, ...]
    """Environment variables: the first one that is set names the place."""

    operators: tuple[str, ...]


KERNELS = Library(
    libraries.KERNELS_FILE,
    libraries.KERNELS_PACKAGE,
    libraries.KERNELS_VARIABLES,
    (
        *("add_norm", "attention_front", "attention_gate", "bandwidth_read"),
        *("fp8_gemv", "gdn_decode", "moe_decode", "moe_grouped"),
        *("nvfp4_dequantize", "nvfp4_gemv", "nvfp4_search", "route_experts"),
        *("quantize_nvfp4", "silu_mul_quantize_nvfp4", "quantize_nvfp4_experts"),
    ),
)
SPARSE24 = Library(
    "libgb10_sparse24.so",
    "kernels-sparse24",
    ("GB10_KERNELS_SPARSE24", "GB10_KERNELS"),
    ("sparse24_gemv", "sparse24_moe"),
)


def library_path(library: Library = KERNELS) -> Path:
    """The library in the place that its variable names: a folder (also under ``lib/``), or the file itself.

    ``SPARSE24`` is looked for beside ``KERNELS`` unless it has a variable of its own. Raises ``UserError``
    when no variable is set or there is no such file.
    """
    return libraries.find(library.file, library.package, library.variables)


def load(library: Library = KERNELS) -> None:
    """Load a library's operators into torch, once; for fake tensors too: what they write is given to them.

    Raises ``UserError`` when it cannot be found or loaded.
    """
    _load(library)


@functools.cache
def _load(library: Library) -> None:
    path = library_path(library)
    load_library: Callable[[str], None] = torch.ops.load_library  # torch gives it no types
    try:
        load_library(str(path))
    except OSError as error:
        reason = str(error.__cause__ or error)
        raise UserError(f"{path} cannot be loaded: {reason}") from error
    for name in library.operators:
        torch.library.register_fake(f"gb10::{name}", lambda *_: None)
