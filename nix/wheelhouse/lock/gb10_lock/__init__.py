"""Writes python/wheels.lock.json out of python/profiles.toml and python/locks/."""
