"""What replaces vLLM's own on a GPU."""
