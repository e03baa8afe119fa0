"""Makes the repository's `bench` package importable: it is run from the root and not installed."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))
