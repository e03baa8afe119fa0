"""``gb10 predict``: tokens a second of a model on a GB10, with an error bar. Nobody here has a GB10."""
