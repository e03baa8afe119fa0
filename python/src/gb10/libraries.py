"""Where a library of CUDA operators is. Light: no torch."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gb10.errors import UserError


def find(file: str, package: str, variables: Sequence[str], environ: Mapping[str, str] = os.environ) -> Path:
    """The library in the place that the first set one of ``variables`` names.

    That is a folder (also under ``lib/``), or, for the first variable, the file itself. ``package`` is the
    flake's package that has it. Raises ``UserError`` when no variable is set or there is no such file.
    """
    own = variables[0]
    remedy = f"set {own} to the folder that `nix build .#{package}` gave"
    variable = next((name for name in variables if environ.get(name)), None)
    if variable is None:
        raise UserError(f"{own} is not set; {remedy}")
    place = Path(environ[variable])
    if place.is_file():
        if variable == own:
            return place
        place = place.parent
    for candidate in (place / file, place / "lib" / file):
        if candidate.is_file():
            return candidate
    raise UserError(f"{variable} is {place}, where there is no {file}; {remedy}")


KERNELS_FILE = "libgb10_kernels.so"
KERNELS_PACKAGE = "kernels"
KERNELS_VARIABLES = ("GB10_KERNELS",)


def kernels(environ: Mapping[str, str] = os.environ) -> Path:
    """The library of the kernels that serve; raises as `find` does."""
    return find(KERNELS_FILE, KERNELS_PACKAGE, KERNELS_VARIABLES, environ)
