"""Puts the program on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "nix" / "apps" / "rebuild"))
