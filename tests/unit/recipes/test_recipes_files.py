"""The recipes that come with gb10, what a file may say, and which machine gets what."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gb10 import recipes
from gb10.errors import UserError
from gb10.recipes import choice
from gb10.recipes.recipe import SIZES, Machine, Recipe, parse, words
from gb10.units import GIB

ASKED_FOR = {
    "gpt-oss-120b",
    "nemotron-3.5-lightning",
    "qwen3-coder-next",
    "qwen3-next-80b-a3b",
    "qwen3.6-35b-a3b",
    "qwen3.8-27b",
    "qwen3.8-flash-next",
}
SPARK = 120 * GIB
SMALL_SPARK = 60 * GIB

PLAIN = """\
summary = "A model"
model = "org/name"
unpinned = "this is a test"
architecture = "Qwen3ForCausalLM"
weights-gb = 10
cache-bytes-per-token = 1024
sources = ["here"]

[serve]
max-num-seqs = 4

[[machine]]
memory-gb = 64
serve = { max-model-len = 1024 }

[[machine]]
memory-gb = 128
serve = { max-model-len = 4096, max-num-seqs = 8 }
"""


def plain(old: str = "", new: str = "") -> Recipe:
    assert old in PLAIN
    return parse(PLAIN.replace(old, new, 1), "plain", "recipe plain")


def test_the_recipes_that_the_issue_names_are_there() -> None:
    assert set(recipes.names()) == ASKED_FOR


@pytest.mark.parametrize("name", sorted(ASKED_FOR))
def test_each_says_what_a_user_must_know(name: str) -> None:
    """A file of a user's may leave these out."""
    recipe = recipes.load(name)
    assert recipe.revision is not None or len(recipe.unpinned or "") > 20
    assert recipe.architecture and recipe.weights and recipe.cache
    assert {one.memory for one in recipe.machines} <= set(SIZES)
    for machine in recipe.machines:
        assert recipe.context(machine)
        assert recipe.options(machine)["enable-auto-tool-choice"] is True
        assert "tool-call-parser" in recipe.options(machine)
    if {one.memory for one in recipe.machines if one.nodes == 1} != set(SIZES):
        assert any(note.startswith("None for") for note in recipe.notes), "which machine is left out, and why"
    drafts = recipe.serve.get("speculative-config", {})
    if "model" in drafts:
        assert re.fullmatch("[0-9a-f]{40}", drafts["revision"]) and recipe.draft > 0


@pytest.mark.parametrize("name", sorted(ASKED_FOR))
def test_each_fits_its_machines(name: str) -> None:
    recipe = recipes.load(name)
    for machine in recipe.machines:
        need = choice.need(recipe, machine)
        assert need is not None and need.total <= need.limit, str(need)


def test_what_a_machine_needs() -> None:
    need = choice.need(plain(), plain().machines[0])
    assert need is not None
    assert (need.weights, need.cache) == (10 * 10**9, 1024 * 1024)
    # 60 of 64 GiB are seen, a twentieth stays.
    assert need.limit == 60 * GIB - 3 * GIB
    for left_out in ("weights-gb = 10\n", "cache-bytes-per-token = 1024\n"):
        recipe = plain(left_out)
        assert choice.need(recipe, recipe.machines[0]) is None
    recipe = plain("serve = { max-model-len = 1024 }")
    assert recipe.context(recipe.machines[0]) is None
    assert choice.need(recipe, recipe.machines[0]) is None


def test_a_recipe_that_two_nodes_share() -> None:
    recipe = plain("memory-gb = 64", "memory-gb = 64\nnodes = 2")
    need = choice.need(recipe, recipe.machines[0])
    assert need is not None and need.weights == 5 * 10**9
    with pytest.raises(UserError, match="2 nodes of 64 GB, not for 1; --nnodes 2, or `gb10 cluster`"):
        recipes.choose(recipe, SMALL_SPARK)
    assert recipes.choose(recipe, SMALL_SPARK, 2).nodes == 2
    assert recipes.choose(recipe, SPARK, 1).memory == 128


@pytest.mark.parametrize(
    ("memory", "chosen"), [(SPARK, 128), (139 * GIB, 128), (79 * GIB, 64), (SMALL_SPARK, 64), (55 * GIB, 64)]
)
def test_the_largest_that_this_machine_can_be(memory: int, chosen: int) -> None:
    assert recipes.choose(plain(), memory).memory == chosen


def test_a_machine_that_is_too_small_is_told_so() -> None:
    with pytest.raises(UserError, match=r"for machines of 64 GB or more, and this one has 23\.5 GiB"):
        recipes.choose(plain(), int(23.5 * GIB))
    with pytest.raises(UserError, match="for machines of 128 GB or more"):
        recipes.choose(recipes.load("gpt-oss-120b"), SMALL_SPARK)


def test_options_as_a_command_line() -> None:
    options: dict[str, Any] = {
        "a": True,
        "b": False,
        "c": 3,
        "d": 0.5,
        "e": "x y",
        "f": {"method": "mtp", "n": 2},
        "g": ["p", "q"],
    }
    shown = '--a|--no-b|--c|3|--d|0.5|--e|x y|--f|{"method":"mtp","n":2}|--g|p|q'
    assert words(options) == shown.split("|")


def test_a_machine_has_the_last_word() -> None:
    recipe = plain()
    assert [recipe.options(one)["max-num-seqs"] for one in recipe.machines] == [4, 8]
    assert recipes.serve_arguments(recipe, recipe.machines[1]) == [
        *("--model", "org/name", "--max-num-seqs", "8", "--max-model-len", "4096")
    ]
    assert "--model" not in recipes.serve_arguments(recipe, recipe.machines[1], model=False)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_the_commit_goes_with_the_model() -> None:
    recipe = plain('unpinned = "this is a test"', f'revision = "{COMMIT}"')
    machine = recipe.machines[0]
    assert recipes.serve_arguments(recipe, machine)[2:4] == ["--revision", COMMIT]
    assert "--revision" not in recipes.serve_arguments(recipe, machine, model=False)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('summary = "A model"\n', "", "has no summary; it is one line of text"),
        ('"A model"', "3", "summary: '3' is not one line of text"),
        ('"A model"', '"""A\nB"""', "is not one line of text"),
        ('"org/name"', '"/folder"', "is not a name of the hub"),
        ('unpinned = "this is a test"', "", "needs one of revision"),
        ('unpinned = "this is a test"', 'revision = "main"', "is not a full commit of 40 hexadecimal digits"),
        ('summary = "A model"', f'summary = "A"\nrevision = "{COMMIT}"', "needs one of revision"),
        ("weights-gb = 10", "weights-gb = true", "is not a number of GB"),
        ("weights-gb = 10", "weights-gb = -1", "is not a number of GB"),
        ("weights-gb = 10", "weights-gb = nan", "is not a number of GB"),
        ("weights-gb = 10", "weights-gb = inf", "is not a number of GB"),
        ("weights-gb", "weigths-gb", "unknown key 'weigths-gb'; did you mean weights-gb?"),
        ("cache-bytes-per-token = 1024", "cache-bytes-per-token = 1.5", "is not a number of bytes"),
        ('["here"]', "[]", "has no sources"),
        ('["here"]', "[1]", "sources: '1' is not one line of text"),
        ("[serve]", "[served]", "has no serve; it is a table of options"),
        ("max-num-seqs = 4", "max_num_seqs = 4", "'max_num_seqs' is no option"),
        ("max-num-seqs = 4", '"--max-num-seqs" = 4', "is no option"),
        ("max-num-seqs = 4", "max-num-seqs = []", "has no value that an option can have"),
        ("max-num-seqs = 4", "max-num-seqs = 1979-05-27", "has no value that an option can have"),
        (
            "max-num-seqs = 4",
            'api-key = "k"',
            "api-key cannot be set by a recipe: a key is no part of a recipe",
        ),
        ("max-num-seqs = 4", 'host = "0.0.0.0"', "host cannot be set by a recipe"),
        ("max-num-seqs = 4", "trust-remote-cod = true", "trust-remote-cod cannot be set by a recipe"),
        ("max-num-seqs = 4", 'middleware = "a.B"', "middleware cannot be set by a recipe"),
        (
            "max-num-seqs = 4",
            'served-model-name = ["a", "--trust-remote-code"]',
            "served-model-name: '--trust-remote-code' would be read as another option",
        ),
        ("max-num-seqs = 4", 'dtype = "-tp"', "dtype: '-tp' would be read as another option"),
        ("max-num-seqs = 4", "trust-remote-code = true", "trust-remote-code cannot be set by a recipe"),
        *(
            ("max-num-seqs = 4", f"speculative-config = {{ {inner} }}", f"speculative-config: {says}")
            for inner, says in (
                (
                    'method = "custom_class", model = "os.system"',
                    "its method must be said, and none that loads",
                ),
                ('model = "os.system"', "its method must be said"),
                ('method = "draft_model", model = "/etc/passwd"', "its model '/etc/passwd' is not a name"),
                (
                    'method = "mtp", code_revision = "main"',
                    "code_revision of it is none that a recipe may set",
                ),
                (
                    'method = "mtp", draft_load_config = { load_format = "pt" }',
                    "draft_load_config of it is none",
                ),
            )
        ),
        ("max-num-seqs = 4", 'speculative-config = "{}"', "speculative-config: it is no table"),
        ("max-model-len = 1024", "max-model-len = 0", "max-model-len: '0' is not a number of tokens"),
        ("max-model-len = 1024", "max-model-len = true", "is not a number of tokens"),
        ("memory-gb = 64", "memory-gb = 80", "memory-gb: 80 is not one of 64, 128"),
        ("memory-gb = 64", "memory-gb = 128", "the machine of 128 GB with 1 node is there twice"),
        ("memory-gb = 64", "memory-gb = 64\nnodes = 0", "nodes: '0' is not a number of nodes"),
        ("memory-gb = 64", "memory-gb = 64\nserves = 0", "unknown key 'serves'; did you mean serve?"),
        ("[[machine]]", "[[machines]]", "did you mean machine?"),
        ('summary = "A model"', "summary = ", "is not TOML: Invalid value (at line 1, column 11)"),
        ('summary = "A model"', "a = " + "[" * 5000, "is not TOML"),
    ],
)
def test_what_is_wrong_is_one_line(old: str, new: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        plain(old, new)
    text = str(caught.value)
    assert says in text
    assert "\n" not in text and text.startswith("recipe plain") and len(text) < 300


def test_files_that_are_none(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b'summary = "\xff"')
    for word, says in (
        (str(bad), "is not UTF-8: byte 11 is none of it"),
        (str(tmp_path / "none.toml"), "cannot be read: No such file or directory"),
        (f"{tmp_path}/", "cannot be read: it is a folder, not a file"),
        ("/dev/zero", "cannot be read: it is a device, not a file"),
        ("a\0/b", "is no path"),
    ):
        with pytest.raises(UserError) as caught:
            recipes.load(word)
        assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_the_users(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(PLAIN)
    assert recipes.load(str(file)).name == "mine"


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("qwen3.6", "qwen3.6-35b-a3b"),
        ("Qwen3.6-35B-A3B", "qwen3.6-35b-a3b"),
        ("lightning", "nemotron-3.5-lightning"),
        ("gptoss-120b", "gpt-oss-120b"),
        ("qwen3.8", "qwen3.8-27b or qwen3.8-flash-next"),
    ],
)
def test_a_near_name_is_told(word: str, meant: str) -> None:
    with pytest.raises(UserError) as caught:
        recipes.load(word)
    assert f"did you mean {meant}? there are: gpt-oss-120b, " in str(caught.value)


def test_a_name_that_is_near_to_none() -> None:
    with pytest.raises(UserError, match=r"^no recipe named 'zzz'; there are: "):
        recipes.load("zzz")


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PARTS = ("summary", "model", "revision", "weights-gb", "sources", "serve", "machine", "notes", "memory-gb")


@given(st.text(max_size=80))
def test_any_text_is_a_recipe_or_one_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text, "any", "recipe any")
    assert "\n" not in str(caught.value)


@given(key=st.sampled_from(PARTS), value=VALUES)
def test_any_value_is_taken_or_one_line(key: str, value: Any) -> None:
    """Values as tomllib gives them, in the place of what is meant."""
    content = tomllib.loads(PLAIN) | {key: value}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gb10.recipes.recipe.tomllib.loads", lambda _: content)
        try:
            recipe = parse("", "any", "recipe any")
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert all(isinstance(one, Machine) for one in recipe.machines)
            assert all(
                isinstance(word, str) for one in recipe.machines for word in words(recipe.options(one))
            )
