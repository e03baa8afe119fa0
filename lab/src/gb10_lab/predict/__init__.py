"""Fits the constants of ``gb10 predict`` and holds them against figures that they were not fitted on."""
