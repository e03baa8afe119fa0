"""Which of a recipe's machines this one is, what it needs of memory, and the arguments that follow."""

from dataclasses import dataclass

from gb10.errors import UserError
from gb10.recipes.recipe import Machine, Recipe, words
from gb10.units import GIB, text_size

_SEEN = 0.85
"""What the system must see of the memory that a machine is sold with: a GB10 of 128 GB shows 119 to 122 GiB,
0.93 to 0.95 of 128 GiB; an H100 of 80 GB shows 79 GiB."""

_SHOWN = 0.93
"""What it mostly sees."""

_OWN = 5 * GIB
"""vLLM's processes, activations, graphs and CUDA: what gb10.serve.budget counts with on unified memory."""


@dataclass(frozen=True)
class Need:
    """Bytes on one node: the weights, the cache of one whole context, vLLM itself, and all of the memory."""

    weights: int
    cache: int
    memory: int

    @property
    def total(self) -> int:
        """What is needed at the least."""
        return self.weights + self.cache + _OWN

    @property
    def limit(self) -> int:
        """What can be had: a twentieth stays for the system, as in gb10.serve.budget."""
        return self.memory - self.memory // 20

    def __str__(self) -> str:
        return (
            f"weights {text_size(self.weights)}, one context {text_size(self.cache)}, "
            f"vLLM {text_size(_OWN)}: {text_size(self.total)} of {text_size(self.limit)}"
        )


def need(recipe: Recipe, machine: Machine) -> Need | None:
    """What ``machine`` needs at the least, with one sequence of the whole context; None if it is not said."""
    context = recipe.context(machine)
    if not (recipe.weights and recipe.cache and context):
        return None
    memory = round(machine.memory * _SHOWN) * GIB
    weights = (recipe.weights + recipe.draft) // machine.nodes
    return Need(weights, recipe.cache * context // machine.nodes, memory)


def _called(machine: Machine) -> str:
    return f"{machine.memory} GB" if machine.nodes == 1 else f"{machine.nodes} nodes of {machine.memory} GB"


def choose(recipe: Recipe, memory: int, nodes: int = 1) -> Machine:
    """The largest machine of ``recipe`` that one with ``memory`` bytes, among ``nodes``, can be.

    Raises UserError where all of them are larger, or want another number of nodes.
    """
    fitting = [one for one in recipe.machines if memory >= one.memory * _SEEN * GIB]
    if not fitting:
        least = min(recipe.machines, key=lambda one: one.memory)
        raise UserError(
            f"recipe {recipe.name} is for machines of {_called(least)} or more, and this one has "
            f"{text_size(memory)}; `gb10 recipes` lists what there is for which"
        )
    same = [one for one in fitting if one.nodes == nodes]
    if not same:
        other = max(fitting, key=lambda one: one.memory)
        ways = f"--nnodes {other.nodes}, or `gb10 cluster`" if other.nodes > 1 else "leave out --nnodes"
        raise UserError(f"recipe {recipe.name} is for {_called(other)}, not for {nodes}; {ways}")
    return max(same, key=lambda one: one.memory)


def serve_arguments(recipe: Recipe, machine: Machine, *, model: bool = True) -> list[str]:
    """What ``gb10 serve`` gets on ``machine``; without ``model`` only the options, for another checkpoint."""
    named = ["--model", recipe.model] if model else []
    named += ["--revision", recipe.revision] if model and recipe.revision else []
    return [*named, *words(recipe.options(machine))]
