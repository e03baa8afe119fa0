"""Runs uv and pip and turns their failure into one clear line."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from gb10_lock.errors import LockError


def last_words(text: str) -> str:
    """The line of a tool's complaint that says most: its first `error` line, else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if line.lower().startswith("error"):
            return " ".join(lines[number : number + 2])
    return lines[-1] if lines else "it said nothing"


def tool(command: Sequence[str], *, doing: str, cwd: Path) -> str:
    """Runs `command` in `cwd` and returns its standard output; LockError names what was being done."""
    if shutil.which(command[0]) is None:
        raise LockError(f"`{command[0]}` is not on PATH: run this tool as `nix run .#lock`")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LockError(f"{doing}: {command[0]} failed: {last_words(done.stderr)}")
    return done.stdout
