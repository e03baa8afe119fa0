"""``gb10 audit``: what a decoded token reads of a model and what fits, from its config and headers alone."""
