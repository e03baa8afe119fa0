"""gb10: serve NVFP4 language models with vLLM, tuned for the NVIDIA DGX Spark (GB10)."""

__version__ = "0.1.0"
