"""gb10's CUDA kernels as torch operators (``torch.ops.gb10.*``).

``load()`` brings the operators into torch; each module of this package wraps one kernel folder with typed
functions that say shapes, dtypes, units and errors. The operators never allocate and never synchronise, so
they can be captured in CUDA graphs.
"""

from gb10.kernels.library import load

__all__ = ["load"]
