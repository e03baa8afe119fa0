"""Writes python/locks/ out of python/profiles.toml: uv resolves, a lock names one wheel for each project."""
