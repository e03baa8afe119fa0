"""Puts this folder on the path: `small_model` serves the tests of several rooms."""
