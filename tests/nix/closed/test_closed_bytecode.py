"""Every module of the closure has byte code that Python takes as it is.

Where it is missing or older than its source, Python writes it at import: into the store, if it runs as root.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import struct
import subprocess
import sys
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import NAME, closure

UNCHECKED, DATED = 1, 0
"""The second word of byte code whose source is not looked at, and of such that has its date (PEP 552)."""


def modules(path: Path) -> Iterator[Path]:
    """The modules of a store path that Python may import."""
    for module in (path / "lib").glob("python3*/**/*.py"):
        if not module.is_symlink():
            yield module


def may_be_imported(module: Path) -> bool:
    """Whether it is Python: tests of a parser and templates are not."""
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(module.read_bytes(), module, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


def is_taken(code: Path, module: Path) -> bool:
    """Whether Python takes this byte code. A date in the store is 1 second: nixpkgs' byte code has that."""
    with code.open("rb") as file:
        _, kind, date, size = struct.unpack("<4I", file.read(16))
    source = module.stat()
    return bool(
        kind == UNCHECKED or (kind == DATED and (date, size) == (int(source.st_mtime), source.st_size))
    )


def stale(path: Path) -> list[str]:
    """Modules without such byte code."""
    found = []
    for module in modules(path):
        code = Path(importlib.util.cache_from_source(str(module)))
        if code.is_file():
            if is_taken(code, module):
                continue
        elif not may_be_imported(module):
            continue
        found.append(str(module.relative_to(path)))
    return found


def test_byte_code_is_whole() -> None:
    paths = closure(NAME)
    assert sum(1 for path in paths for _ in modules(path)) > 10_000
    assert {path.name: found for path in paths if (found := stale(path))} == {}


@pytest.mark.parametrize("how", ["timestamp", "checked-hash", "none"])
def test_other_byte_code_is_seen(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "lib/python3.11"
    folder.mkdir(parents=True)
    shutil.copy(tokenize.__file__, folder / "one.py")
    (folder / "none.py").write_text("this is no Python\n")
    compiling: list[str | Path] = [
        sys.executable,
        "-m",
        "compileall",
        "-q",
        "-f",
        folder / "one.py",
        "--invalidation-mode",
    ]
    if how != "none":
        subprocess.run([*compiling, how], check=True)
    # As Nix does when it has built something.
    os.utime(folder / "one.py", (1, 1))
    assert stale(tmp_path) == ["lib/python3.11/one.py"]
    for good in ("timestamp", "unchecked-hash"):
        subprocess.run([*compiling, good], check=True)
        assert stale(tmp_path) == []
