"""``gb10 recipes``: list, show, check, import."""

import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from gb10 import arguments, terminal
from gb10.arguments import Command
from gb10.errors import EXIT_FAILED, UserError
from gb10.recipes import choice, find
from gb10.recipes.recipe import Machine, Recipe
from gb10.units import text_size


def _nodes(machine: Machine) -> str:
    return f"{machine.nodes} x {machine.memory}" if machine.nodes > 1 else str(machine.memory)


def _rows() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (
            "name",
            "model",
            "GB",
            "context",
            "seqs",
            "at least",
            "predicted",
            "drafts",
            "tool calls",
            "tested on",
        )
    ]
    for name in find.names():
        recipe = find.load(name)
        for machine in recipe.machines:
            options, need = recipe.options(machine), choice.need(recipe, machine)
            drafts = options.get("speculative-config") or {}
            count = drafts.get("num_speculative_tokens") if isinstance(drafts, dict) else None
            rows.append(
                (
                    name,
                    recipe.model,
                    _nodes(machine),
                    str(recipe.context(machine) or "the model's"),
                    str(options.get("max-num-seqs", "")),
                    text_size(need.total) if need else "not said",
                    f"{machine.predicted:.0f} tok/s" if machine.predicted else "",
                    f"{drafts['method']} {count}" if drafts else "none",
                    str(options.get("tool-call-parser", "none")),
                    ", ".join(recipe.tested) or "nothing",
                )
            )
    return rows


def list_all() -> int:
    """Print all recipes as a table: what they serve, on which machine, what they need of memory.

    On a terminal that is too narrow for the table each recipe has lines of its own.
    """
    rows = _rows()
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    room = terminal.columns(sys.stdout) if sys.stdout.isatty() else None
    if room is not None and room < sum(widths) + 2 * len(widths):
        heads, *recipes = rows
        for name, *cells in recipes:
            said = [f"{head} {cell}" for head, cell in zip(heads[1:], cells, strict=True) if cell]
            print(name)
            print(textwrap.fill(", ".join(said), room, initial_indent="  ", subsequent_indent="  "))
        return 0
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _command(recipe: Recipe, machine: Machine) -> str:
    return shlex.join(["gb10", "serve", *choice.serve_arguments(recipe, machine)])


def show(
    name: Annotated[str, Argument(help="A recipe's name, or a file (.toml).")],
    toml: Annotated[bool, Option("--toml", help="Print the file itself, to make one of your own.")] = False,
) -> int:
    """Print what a recipe says, what each machine needs of memory, and the command that it stands for."""
    recipe = find.load(name)
    if toml:
        print(recipe.text, end="")
        return 0
    print(f"{recipe.name}: {recipe.summary}")
    print(f"model         {recipe.model}")
    print(f"revision      {recipe.revision or f'not pinned: {recipe.unpinned}'}")
    print(f"architecture  {recipe.architecture or 'not said'}")
    print(f"tested on     {', '.join(recipe.tested) or 'no hardware'}")
    width = min(shutil.get_terminal_size().columns, 110)
    for machine in recipe.machines:
        print(f"\n{_nodes(machine)} GB: {choice.need(recipe, machine) or 'memory is not said'}")
        if machine.predicted is not None:
            said = f"{machine.predicted:g} tokens a second, one sequence of 1024 tokens (gb10 predict)"
            print(f"  predicted: {said}")
        print(f"  {_command(recipe, machine)}")
    for title, texts in (("notes", recipe.notes), ("sources", recipe.sources)):
        if texts:
            print(f"\n{title}")
        for text in texts:
            print(textwrap.fill(text, width, initial_indent="- ", subsequent_indent="  "))
    return 0


def _fits(recipe: Recipe, machine: Machine) -> list[str]:
    need = choice.need(recipe, machine)
    return [] if need is None or need.total <= need.limit else [f"does not fit: {need}"]


def check(
    recipes: Annotated[
        list[str] | None, Argument(help="Names or files; without any, all that there are.")
    ] = None,
) -> int:
    """Ask the installed vLLM about each: arguments, architecture, parsers, drafts; exit 1 for a fault."""
    found = [find.load(name) for name in recipes or find.names()]
    try:
        from gb10.recipes import asked
    except ModuleNotFoundError as error:
        raise UserError(f"{error}: the check asks vLLM, which is not installed in this Python") from None
    wrong = 0
    for recipe in found:
        for machine in recipe.machines:
            problems = [*_fits(recipe, machine), *asked.problems(recipe, machine)]
            wrong += len(problems)
            print(f"{recipe.name}, {_nodes(machine)} GB: {'; '.join(problems) or 'good'}")
    return EXIT_FAILED if wrong else 0


def take_over(
    file: Annotated[Path, Argument(help="NVIDIA's recipe.yaml, or a recipe of eugr's spark-vllm-docker.")],
) -> int:
    """Print a recipe of NVIDIA's or eugr's as TOML; on stderr, a line each, what cannot be carried over."""
    try:
        from gb10.recipes import imported

        made = imported.read(file)
    except ModuleNotFoundError as error:
        raise UserError(f"{error}: an import needs PyYAML, which comes with vLLM") from None
    print(made.text, end="")
    for line in made.left:
        print(f"not carried over: {line}", file=sys.stderr)
    return 0


_ABOUT = "What is known to be good for a model on a Spark. `gb10 serve --recipe NAME` serves one."
_HERE = f"{__name__}:"
_COMMANDS = {
    "list": Command(
        _HERE + list_all.__name__, "Print all recipes as a table; the same as `gb10 recipes` alone."
    ),
    "show": Command(_HERE + show.__name__, "Print what a recipe says, and the command for each machine."),
    "check": Command(
        _HERE + check.__name__, "Ask the installed vLLM, and do the arithmetic, for each recipe."
    ),
    "import": Command(_HERE + take_over.__name__, "Print a recipe of NVIDIA's or eugr's as one of gb10's."),
}


def run(argv: Sequence[str]) -> int:
    """``gb10 recipes``."""
    return arguments.run("gb10 recipes", _ABOUT, _COMMANDS, [*argv] or ["list"])
