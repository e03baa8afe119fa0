"""Looks at a checkpoint without loading it."""
