"""Every module of the closure has byte code that is never checked again.

Where it is missing, or has the time stamp of its source, Python writes it at import: into the store, if it
runs as root.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import closure

UNCHECKED = (1).to_bytes(4, "little")
"""The second word of byte code whose source is not looked at (PEP 552)."""


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


def stale(path: Path) -> list[str]:
    """Modules without such byte code."""
    found = []
    for module in modules(path):
        code = Path(importlib.util.cache_from_source(str(module)))
        if code.is_file():
            with code.open("rb") as file:
                if file.read(8)[4:] == UNCHECKED:
                    continue
        elif not may_be_imported(module):
            continue
        found.append(str(module.relative_to(path)))
    return found


def test_byte_code_is_whole() -> None:
    paths = closure("serve")
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
    assert stale(tmp_path) == ["lib/python3.11/one.py"]
    subprocess.run([*compiling, "unchecked-hash"], check=True)
    assert stale(tmp_path) == []
