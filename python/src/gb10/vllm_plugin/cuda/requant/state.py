"""What a load in progress is."""

dummy = False
"""Whether weights are made up (`--load-format dummy`): then a layer that nothing was loaded into has some."""
