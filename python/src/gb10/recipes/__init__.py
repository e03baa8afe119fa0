"""Recipes: what is known to be good for a model on a Spark, in TOML: `gb10 recipes`, `gb10 serve --recipe`.

A recipe is weaker than whatever the user says and stronger than what gb10 computes (`gb10.serve.settings`).
Light: neither torch nor vLLM. Only `gb10.recipes.asked` imports vLLM, to ask it.
"""

from gb10.recipes.choice import Need, choose, serve_arguments
from gb10.recipes.find import load, names
from gb10.recipes.recipe import Machine, Recipe

__all__ = ["Machine", "Need", "Recipe", "choose", "load", "names", "serve_arguments"]
