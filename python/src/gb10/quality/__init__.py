"""The quality gate: what a number format does to the answers of the small trained model (gb10.testbed).

One forward pass of held-out text for each row, all in float32 on the CPU. Each row has other weights, other
activations, or another KV cache; `gb10.quality.variants` makes them. `python -m gb10.quality` prints the
table and draws the plot; with `--check` it compares the figures with recorded ones.
"""
