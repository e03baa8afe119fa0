"""patches/vllm/0006: `vllm --version` answers on a machine where vLLM finds no device."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("vllm")

WITHOUT_A_DEVICE = """
import gc, sys
gc.disable()
import vllm.platforms
from vllm.platforms.interface import UnspecifiedPlatform
vllm.platforms._current_platform = UnspecifiedPlatform()
from vllm.entrypoints.cli.main import main
sys.argv = ["vllm", "--version"]
main()
"""


def test_version_needs_no_device() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_DEVICE], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1].startswith("0.32.0")
