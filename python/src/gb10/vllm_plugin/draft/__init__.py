"""Speculative decoding: what a draft may be."""
