"""The testbed: one small Qwen3-Next model, trained from scratch on code and documentation.

Plain torch, no vLLM and no transformers: the recipe runs wherever torch does.
"""
