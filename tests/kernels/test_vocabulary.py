"""Assembly stands in two headers, which the builds for the CPU replace; they test all else as it is."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"


def test_assembly_is_in_two_headers_that_the_host_replaces() -> None:
    sources = [path for path in KERNELS.rglob("*") if path.suffix in {".cuh", ".cu", ".h", ".cpp"}]
    assembly = {path.name for path in sources if re.search(r"\basm\b\s*(volatile)?\s*\(", path.read_text())}
    assert assembly == {path.name for path in (HERE / "host" / "gb10").iterdir()} == {"mma.cuh", "ptx.cuh"}
