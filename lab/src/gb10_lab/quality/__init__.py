"""The quality gate: what a number format does to the answers of the small trained model (gb10_lab.testbed).

One forward pass of held-out text for each row, all in float32 on the CPU. Each row has other weights, other
activations, or another KV cache; `gb10_lab.quality.variants` makes them. `python -m gb10_lab quality` prints
the table and draws the plot; with `--check` it compares the figures with recorded ones.
"""
