"""What the installed vLLM says of a recipe: its parser, its registries of models and parsers.

Imports vLLM (seconds); nothing else here does.
"""

from collections.abc import Iterator
from typing import Any, get_args

from vllm.config.speculative import SpeculativeMethod
from vllm.model_executor.models.registry import ModelRegistry
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager

from gb10.checkpoint.formats import quiet
from gb10.errors import UserError
from gb10.recipes.choice import serve_arguments
from gb10.recipes.recipe import Machine, Recipe
from gb10.serve import launch
from gb10.serve.settings import parse
from gb10.serve.vllm_arguments import Vocabulary


def _methods() -> set[str]:
    """The words for ``method`` of ``--speculative-config``; vLLM nests their types."""

    def words(kind: Any) -> Iterator[str]:
        for part in get_args(kind):
            if isinstance(part, str):
                yield part
            else:
                yield from words(part)

    return set(words(SpeculativeMethod))


def _drafts(config: Any) -> Iterator[str]:
    if not isinstance(config, dict):
        yield "speculative-config is no table"
        return
    method = config.get("method")
    if method not in _methods():
        yield f"speculative-config: vLLM has no method {method!r}"


def problems(recipe: Recipe, machine: Machine) -> Iterator[str]:
    """What vLLM would refuse, or would not do, with ``recipe`` on ``machine``; nothing where all is well."""
    if recipe.architecture and recipe.architecture not in ModelRegistry.get_supported_archs():
        yield f"vLLM has no architecture {recipe.architecture}"
    options = recipe.options(machine)
    tool, reasoning = options.get("tool-call-parser"), options.get("reasoning-parser")
    if tool is not None and tool not in ToolParserManager.list_registered():
        yield f"vLLM has no tool parser {tool}"
    if reasoning is not None and reasoning not in ReasoningParserManager.list_registered():
        yield f"vLLM has no reasoning parser {reasoning}"
    if tool is not None and options.get("enable-auto-tool-choice") is not True:
        # vLLM reads the parser's name and never calls it.
        yield "tool-call-parser without enable-auto-tool-choice does nothing"
    if "speculative-config" in options:
        yield from _drafts(options["speculative-config"])
    try:
        known, several = launch.options()
        # As `gb10 serve` would: its own options are no matter for vLLM's parser.
        said = parse(serve_arguments(recipe, machine), {}, Vocabulary(known, several))
        with quiet():
            # It logs its own traceback beside the error.
            launch.prepare(["--model", recipe.model, *said.passed_on.tokens()], configure=False)
    except UserError as error:
        yield str(error)
