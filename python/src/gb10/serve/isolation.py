"""Python processes that run no code out of the current folder, where a checkpoint may bring a ``json.py``.

``python -m`` puts the current folder first on ``sys.path``, unless it is told not to (``-P``). vLLM starts
more processes in the same way (its model registry, multiprocessing); those read PYTHONSAFEPATH. What `nix
run .#serve` starts also ignores the user's PYTHONPATH, PYTHONHOME and user site (``-I``); a Python that the
user called by hand keeps them, since gb10 itself may come from there.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import gb10

_HARMLESS = frozenset({"PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "PYTHONUNBUFFERED"})


def interpreter() -> list[str]:
    """This Python with the flags that a child of ours gets."""
    no_user_site = sys.flags.ignore_environment or sys.flags.no_user_site
    return [sys.executable, "-P", *(["-s"] if no_user_site else [])]


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` for a child of ours and everything that it starts.

    Isolated ourselves, we drop every variable of Python that could bring code in. Else the parts of
    PYTHONPATH stay, but an empty one, which means the current folder; and gb10 is found where we were found.
    """
    if sys.flags.ignore_environment:
        kept = {
            name: value
            for name, value in environ.items()
            if not name.startswith("PYTHON") or name in _HARMLESS
        }
        return kept | {"PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1"}
    parts = [str(Path(part).absolute()) for part in environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    home = str(Path(gb10.__file__).resolve().parents[1])
    if home not in [*parts, *map(os.path.realpath, sys.path)]:
        parts.insert(0, home)
    kept = {name: value for name, value in environ.items() if name != "PYTHONPATH"}
    return kept | {"PYTHONSAFEPATH": "1"} | ({"PYTHONPATH": os.pathsep.join(parts)} if parts else {})
