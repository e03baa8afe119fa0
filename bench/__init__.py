"""Measurements: `python -m bench.kernels` for the kernels. Run from the root of the repository."""
