"""The kernel benchmark: `python -m bench.kernels --out FOLDER`. bench/README.md says how it measures."""
