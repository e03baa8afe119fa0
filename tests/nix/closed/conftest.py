"""Fixtures: what a package needs of the store, and an empty root with it.

The check gives the closures (Nix's exportReferencesGraph) as NAME.graph in $NIX_BUILD_TOP. By hand:
GB10_GRAPHS names a folder with such files, each a list of store paths.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import empty_root
import pytest

HERE = Path(__file__).resolve().parent
NAME = os.environ.get("GB10_CLOSURE", "serve")
"""The closure whose files are looked at."""


def closure(*names: str) -> list[Path]:
    """The store paths that these packages need, with themselves."""
    folder = Path(os.environ.get("GB10_GRAPHS") or os.environ["NIX_BUILD_TOP"])
    lines = {line for name in names for line in (folder / f"{name}.graph").read_text().split()}
    paths = {line for line in lines if line.startswith("/nix/store/") and not line.endswith(".drv")}
    return sorted(map(Path, paths))


@dataclass
class Ran:
    """What a command in an empty root did."""

    status: int
    output: str
    errors: str
    written: list[str]
    """Below /nix/store: what it wrote there."""


Run = Callable[..., Ran]


@pytest.fixture
def run_in_empty_root(tmp_path: Path) -> Run:
    """``run(paths, command, environment, files)``: with ``files`` copied into its /tmp, once for each test.

    A test may put more into ``tmp_path / "empty" / "tmp"``, and devices into ``"dev"`` beside it.
    """

    def run(
        paths: Iterable[Path],
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        files: Iterable[Path] = (),
    ) -> Ran:
        folder = tmp_path / "empty"
        folder.mkdir(exist_ok=True)
        written = folder / "written"
        (folder / "tmp").mkdir(exist_ok=True)
        written.mkdir()
        (folder / "paths").write_text("".join(f"{path}\n" for path in paths))
        # The CPU build serves on a machine with a GPU too.
        lines = {"PATH": "/no-path", "HOME": "/tmp", "GB10_PROFILE": "cpu", **(environment or {})}
        (folder / "environment").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        for file in files:
            (folder / "tmp" / file.name).write_bytes(file.read_bytes())
        program = [sys.executable, str(HERE / "empty_root.py"), str(folder)]
        done = subprocess.run([*program, *map(str, command)], capture_output=True, text=True, timeout=600)
        if done.returncode == empty_root.CLOSED:
            pytest.skip(done.stderr.strip())
        changes = [str(place.relative_to(written)) for place in written.rglob("*") if not place.is_dir()]
        return Ran(done.returncode, done.stdout, done.stderr, sorted(changes))

    return run
