"""Puts the lock tool and the stand-ins of its tests on the path."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[2] / "nix" / "wheelhouse" / "lock")]

from lock_fakes import FakeTools  # noqa: E402


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTools:
    """Stand-ins for uv and pip, alone on PATH."""
    fake = FakeTools(tmp_path)
    monkeypatch.setenv("PATH", str(fake.bin))
    return fake
