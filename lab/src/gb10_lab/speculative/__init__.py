"""Measure speculative decoding in vLLM: acceptance, speed, and that it changes nothing in the output."""
