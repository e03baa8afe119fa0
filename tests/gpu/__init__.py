"""Tests that need a GPU. A package, because files of the same names are in tests/kernels."""
