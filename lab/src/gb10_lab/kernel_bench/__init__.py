"""The kernel benchmark: `python -m gb10_lab.kernel_bench --out FOLDER`. See lab/README.md."""
