"""What the tests of the Nix lint tools share: they run each tool as the checks do, as a program."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[3] / "nix" / "checks" / "lint"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run() -> Run:
    """Run one of the tools; skips where its parser is not installed."""
    pytest.importorskip("tree_sitter_nix", reason="needs tree-sitter and tree-sitter-nix")

    def call(tool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return call


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Mapping[str, str]], Path]:
    """Write files (path -> content) below an empty folder and return the folder."""

    def make(files: Mapping[str, str]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        return tmp_path

    return make
