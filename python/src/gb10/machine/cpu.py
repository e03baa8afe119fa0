"""What the processor can do, as Linux lists it."""

from functools import cache
from pathlib import Path


@cache
def has_amx() -> bool:
    """Whether the processor has AMX tiles: what ``torch.cpu._is_amx_tile_supported`` says, without torch."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(" amx_tile" in line for line in text.splitlines() if line.startswith("flags"))
