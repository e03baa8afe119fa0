"""The laboratory: the small trained model, and what measures quality, drafts and kernels.

Nothing that serves imports it.
"""
