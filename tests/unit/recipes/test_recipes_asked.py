"""What the installed vLLM says of each recipe, and that it would say so of a wrong one."""

import importlib.util
from collections.abc import Iterator
from dataclasses import fields

import pytest

from gb10 import recipes
from gb10.recipes.recipe import ALLOWED, DRAFTS, Machine, Recipe, parse

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)

from vllm.config.speculative import SpeculativeConfig

from gb10.recipes import asked
from gb10.serve import launch
from gb10.serve.settings import ROWS

CODER = "qwen3-coder-next"
NEXT = "qwen3-next-80b-a3b"


def machines() -> Iterator[tuple[str, int]]:
    for name in recipes.names():
        yield from ((name, place) for place in range(len(recipes.load(name).machines)))


@pytest.mark.parametrize(("name", "place"), list(machines()))
def test_vllm_takes_each_recipe(name: str, place: int) -> None:
    recipe = recipes.load(name)
    assert list(asked.problems(recipe, recipe.machines[place])) == []


def changed(name: str, old: str, new: str) -> tuple[Recipe, Machine]:
    text = recipes.load(name).text
    assert text.count(old) >= 1
    recipe = parse(text.replace(old, new, 1), name, name)
    return recipe, recipe.machines[0]


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        (CODER, "Qwen3NextForCausalLM", "Qwen9ForCausalLM", "vLLM has no architecture Qwen9ForCausalLM"),
        (CODER, '"qwen3_coder"', '"qwen9_coder"', "vLLM has no tool parser qwen9_coder"),
        ("qwen3.8-27b", 'parser = "qwen3"', 'parser = "qwen9"', "vLLM has no reasoning parser qwen9"),
        (CODER, "choice = true", "choice = false", "without enable-auto-tool-choice does nothing"),
        (CODER, 'dtype = "fp8"', 'dtype = "fp9"', "vLLM's arguments: argument --kv-cache-dtype"),
        (CODER, "max-num-seqs = 8", "max-num-seqs = 0", "--max-num-seqs"),
        (NEXT, '"mtp"', '"mtq"', "vLLM has no method 'mtq'"),
    ],
)
def test_control_a_wrong_one_is_told(name: str, old: str, new: str, says: str) -> None:
    found = list(asked.problems(*changed(name, old, new)))
    assert any(says in one for one in found), found
    assert all("\n" not in one for one in found)


def test_what_a_recipe_may_set_is_there() -> None:
    """By vLLM's own parser, or as a setting of gb10's."""
    known, _ = launch.options()
    own = {row.name for row in ROWS.values()}
    assert [name for name in sorted(ALLOWED) if f"--{name}" not in known and f"--{name}" not in own] == []
    assert {"--enable-prefix-caching", "--dense"} <= known.keys() | own
    assert {one.name for one in fields(SpeculativeConfig)} >= DRAFTS
