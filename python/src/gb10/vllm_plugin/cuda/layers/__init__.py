"""The layers of the Qwen3 families with experts, on our kernels."""
