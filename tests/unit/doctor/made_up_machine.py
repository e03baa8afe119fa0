"""A folder in place of /, with what the kernel would say in it."""

import platform
from dataclasses import dataclass
from pathlib import Path

MEMINFO = {
    "MemTotal": 126_000_000,
    "MemFree": 100_000_000,
    "MemAvailable": 120_000_000,
    "SwapTotal": 16_000_000,
    "SwapFree": 16_000_000,
    "CmaTotal": 65_536,
}
"""In KiB, as the kernel says it."""


@dataclass
class Machine:
    """The folder in place of /, and variables."""

    root: Path
    environ: dict[str, str]

    @property
    def libraries(self) -> Path:
        """Where the driver's libraries lie."""
        return self.root / f"usr/lib/{platform.machine()}-linux-gnu"

    def write(self, name: str, text: str) -> None:
        """A file below the root."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def memory(self, **kibibytes: int) -> None:
        """What /proc/meminfo says."""
        rows = (MEMINFO | kibibytes).items()
        self.write("proc/meminfo", "".join(f"{name}: {size} kB\n" for name, size in rows))
