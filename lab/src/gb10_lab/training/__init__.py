"""Training of the small model and of its draft head, calibration, and the comparison of two runs."""
