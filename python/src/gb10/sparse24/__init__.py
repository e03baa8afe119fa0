"""2 of 4: an NVFP4 weight of which two of every four consecutive values of a row are kept. Lossy, so opt-in.

Trained NVFP4 weights hardly have this pattern by themselves (docs/sparse24.md), so packing drops
non-zeros. `pack` says how much and refuses beyond a limit. `unpack` gives the kept values as dense NVFP4
again, bit for bit: that is the path for more tokens than the kernels take. `gb10.kernels.sparse24`
multiplies with the packed form.

    gb10 sparse24 FILE.safetensors

prints what packing would drop of each weight in a file.
"""

from gb10.sparse24.packing import Sparse24Weight, TooLossyError, kept_positions, pack, unpack
from gb10.sparse24.report import Loss, measure, table, total

__all__ = [
    "Loss",
    "Sparse24Weight",
    "TooLossyError",
    "kept_positions",
    "measure",
    "pack",
    "table",
    "total",
    "unpack",
]
