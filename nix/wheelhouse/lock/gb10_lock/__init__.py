"""Writes python/locks/ out of python/profiles.toml: uv resolves, and each lock names the one wheel a project is installed from."""
