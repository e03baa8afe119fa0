"""Measures one configuration of vLLM on a full-size model with seeded weights, and compares configurations.

`configurations` says what is compared, `weights` fills the model, `session` runs the engine, `profile` and
`resident` read kernels and bytes out of it, `figures` and `report` are arithmetic and tables without a GPU.
"""
