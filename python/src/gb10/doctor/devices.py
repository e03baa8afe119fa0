"""How fast memory is read, by device: what others and we measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A GPU by a part of its name. ``rate``: bytes a second that a kernel gets which only reads."""

    name: str
    rate: float
    source: str


DEVICES = (
    Device(
        "GB10",
        228e9,
        "least of four: 228 (omnigeeker/GB10-Engine README), 231 to 234 (antirez/ds4 #773), 233.6 (DGPP), "
        "238 (sf-stav/veloGB10 README); NVIDIA names 273",
    ),
    Device(
        "H200", 4.26e12, "lab/results/2026-11-22-h200.json: this kernel, on an H200; NVIDIA names 4.8 TB/s"
    ),
)
"""The first that fits counts. Others are measured and not judged."""

LEAST = 0.8
"""Below this share of the rate something is wrong. GB10's noise from run to run is 7 % in decoding."""


def of(name: str) -> Device | None:
    """The device of this name."""
    return next((device for device in DEVICES if device.name in name), None)
