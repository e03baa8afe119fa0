"""Finding and loading ``libgb10_kernels.so``."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch

from gb10.errors import UserError

LIBRARY_NAME = "libgb10_kernels.so"


def library_path() -> Path:
    """The library that ``GB10_KERNELS`` names: a file, or a folder that holds it (also under ``lib/``).

    Raises ``UserError`` when the variable is unset or names nothing.
    """
    named = os.environ.get("GB10_KERNELS", "")
    if not named:
        raise UserError("GB10_KERNELS is not set; set it to the folder that `nix build .#kernels` gave")
    folder = Path(named)
    for candidate in (folder, folder / LIBRARY_NAME, folder / "lib" / LIBRARY_NAME):
        if candidate.is_file():
            return candidate
    problem = f"GB10_KERNELS is {named}, where there is no {LIBRARY_NAME}"
    raise UserError(f"{problem}; build it with `nix build .#kernels`")


@functools.cache
def load() -> None:
    """Load the operators into torch, once.

    Raises ``UserError`` when the library cannot be found or loaded.
    """
    path = library_path()
    load_library: Callable[[str], None] = torch.ops.load_library  # torch gives it no types
    try:
        load_library(str(path))
    except OSError as error:
        reason = str(error.__cause__ or error)
        raise UserError(f"{path} cannot be loaded: {reason}") from error
