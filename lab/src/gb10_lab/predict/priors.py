"""What a GB10's kernels cost by measurements of single kernels, before any model's tokens a second.

``value`` is GB/s or microseconds; ``spread`` is the standard deviation of its logarithm. Read rates: what
published kernels reach, which are some 8 % apart. Pieces: stock vLLM's profile on an H200 less the bytes,
where no kernel of a GB10 was published, as what a launch waits for is not bandwidth. They are loose.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prior:
    """One constant: GB/s of a read, microseconds of a piece."""

    value: float
    spread: float
    source: str


PRIORS = {
    "read 16 bit": Prior(233, 0.08, "saturating reads: ds4 231-234, DGPP 233.6, Grout end to end 237"),
    "read 8 bit": Prior(213, 0.08, "42 MB of FP8 in 197.5 us"),
    "read 4 bit": Prior(205, 0.08, "mlxcel's GEMVs 201-214, GB10-Engine's 190"),
    "read experts": Prior(204, 0.08, "vLLM, 4 rows in 384-435 us"),
    "read KV cache": Prior(205, 0.15, "as other reads, less regular; the depth rows are not used"),
    "recurrent state": Prior(205, 0.1, "read 233.6 and written 196.6, DGPP"),
    "matrix": Prior(5.5, 0.3, "large reads take 5.5 us + bytes / 234 GB/s"),
    "attention layer": Prior(25, 0.5, "stock on an H200: 26 us in 6 launches"),
    "GDN layer": Prior(
        15, 0.5, "stock on an H200: 15 us in 7 launches; a GB10's recurrence with its state 36"
    ),
    "expert layer": Prior(50, 0.5, "stock on an H200: 51 us in 15 launches"),
    "launch": Prior(2.5, 0.4, "stock on an H200: 2.8 us of a norm; eager gaps of a GB10 2.6"),
    "step": Prior(300, 0.7, "stock on an H200: 190 us outside of the graph; idle gaps of a GB10 up to 2400"),
}

NOISE = 0.06
"""Standard deviation of the logarithm of a row's time. Repeats of one set-up differ by up to 6.9 %."""

STACK = 0.08
"""The same for what rows of one image, author or machine have in common: clocks, drivers."""
