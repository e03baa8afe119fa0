""".envrc: where nixw gives no shell, direnv is told so and keeps the environment it has."""

import os
import subprocess
from pathlib import Path

import pytest

ENVRC = Path(__file__).resolve().parents[3] / ".envrc"
# The words of direnv's library that it uses.
LIBRARY = """
has() { [ "$1" != nix ]; }
watch_file() { :; }
direnv_layout_dir() { echo "$PWD/.direnv"; }
log_error() { echo "direnv: $*" >&2; }
"""


def _enter(folder: Path, nixw: str) -> subprocess.CompletedProcess[str]:
    program = folder / "nixw"
    program.write_text(f"#!/bin/sh\n{nixw}\n")
    program.chmod(0o755)
    return subprocess.run(
        ["bash", "-c", f"{LIBRARY}\n. '{ENVRC}'\necho \"entered $GIVEN\""],
        cwd=folder,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_shell_that_nixw_gives(tmp_path: Path) -> None:
    done = _enter(tmp_path, "echo 'GIVEN=\"two  words\"'")
    assert (done.returncode, done.stdout, done.stderr) == (0, "entered two  words\n", "")


@pytest.mark.parametrize("nixw", ["exit 2", "echo GIVEN=half; exit 1"])
def test_a_nixw_that_fails_is_said(tmp_path: Path, nixw: str) -> None:
    done = _enter(tmp_path, nixw)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "direnv: ./nixw print-dev-env failed, so there is no development shell here\n"
