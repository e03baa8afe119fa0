"""``gb10 serve --recipe``: what is stronger, what is printed, what is refused."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gb10 import recipes
from gb10.errors import UserError
from gb10.serve.settings import Origin, Settings, parse
from gb10.units import GIB

QWEN = "qwen3.6-35b-a3b"
SPARK = 120 * GIB


def on(memory: int, *argv: str, config: tuple[str, ...] = (), **variables: str) -> Settings:
    return parse(argv, variables, config=config, memory=lambda: memory)


def spark(*argv: str, config: tuple[str, ...] = (), **variables: str) -> Settings:
    return on(SPARK, *argv, config=config, **variables)


def test_a_recipe_is_stronger_than_a_default() -> None:
    found, recipe = spark("--recipe", QWEN), recipes.load(QWEN)
    assert (found.model, found.revision) == (recipe.model, recipe.revision)
    assert (found.max_model_len, found.max_num_seqs) == (262144, 8)
    assert found.kv_cache_dtype == "fp8"
    assert found.passed_on.value("--tool-call-parser") == "qwen3_xml"
    assert found.passed_on.switch("--enable-auto-tool-choice") is True
    rows = {name: (value, origin) for name, value, origin in found.table()}
    assert rows["--recipe"] == (QWEN, "flag")
    assert rows["--max-model-len"] == ("262144", "recipe")
    assert rows["--tool-call-parser"] == ("qwen3_xml", "recipe")
    assert rows["--model"] == (recipe.model, "recipe")
    assert found.said("max_model_len") == "--max-model-len (in the recipe)"


def test_by_its_variable_and_in_a_config_file() -> None:
    assert spark(GB10_RECIPE=QWEN).max_num_seqs == 8
    assert spark("--vllm-args", f"--recipe {QWEN}").max_num_seqs == 8
    assert spark(config=("--recipe", QWEN)).max_num_seqs == 8
    assert spark("--recipe", "gpt-oss-120b", GB10_RECIPE=QWEN).model == "openai/gpt-oss-120b"


@pytest.mark.parametrize(
    ("said", "origin", "value"),
    [
        ({"config": ("--max-num-seqs", "3")}, Origin.CONFIG, 3),
        ({"MAX_NUM_SEQS": "4", "config": ("--max-num-seqs", "3")}, Origin.VARIABLE, 4),
        ({"argv": ("--max-num-seqs", "5"), "MAX_NUM_SEQS": "4"}, Origin.FLAG, 5),
    ],
)
def test_whatever_the_user_says_is_stronger(said: dict[str, Any], origin: Origin, value: int) -> None:
    found = spark("--recipe", QWEN, *said.pop("argv", ()), **said)
    assert (found.max_num_seqs, found.origins["max_num_seqs"]) == (value, origin)
    assert found.max_model_len == 262144


@pytest.mark.parametrize("way", ["argv", "config", "extra"])
def test_so_it_is_for_options_that_are_vllms(way: str) -> None:
    words = ("--tool-call-parser", "hermes", "--no-enable-auto-tool-choice")
    if way == "argv":
        found = spark("--recipe", QWEN, *words)
    elif way == "config":
        found = spark("--recipe", QWEN, config=words)
    else:
        found = spark("--recipe", QWEN, VLLM_EXTRA_ARGS=" ".join(words))
    assert found.passed_on.value("--tool-call-parser") == "hermes"
    assert found.passed_on.switch("--enable-auto-tool-choice") is False
    assert found.passed_on.names.count("--tool-call-parser") == 1
    assert found.passed_on.value("--reasoning-parser") == "qwen3"


def test_a_model_of_the_users_takes_the_options_and_not_the_commit() -> None:
    for found in (spark("/m", "--recipe", QWEN), spark("--recipe", QWEN, MODEL="/m")):
        assert (found.model, found.revision, found.max_num_seqs) == ("/m", None, 8)
    found = spark("--recipe", QWEN, "--revision", "main")
    assert (found.model, found.revision) == (recipes.load(QWEN).model, "main")


def test_the_machine_decides() -> None:
    assert on(60 * GIB, "--recipe", QWEN).max_model_len == 131072
    with pytest.raises(
        UserError, match="for machines of 64 GB or more, and this one has 23 GiB".replace(" 23", " 23.0")
    ):
        on(23 * GIB, "--recipe", QWEN)
    with pytest.raises(UserError, match="for 2 nodes of 128 GB, not for 1"):
        spark("--recipe", "qwen3.8-flash-next")
    two = spark("--recipe", "qwen3.8-flash-next", "--nnodes", "2", "--node-rank", "1")
    assert (two.tensor_parallel_size, two.nnodes) == (2, 2)
    with pytest.raises(UserError, match="--nnodes 'x' is not a whole number"):
        spark("--recipe", QWEN, "--nnodes", "x")


def test_without_a_recipe_nothing_is_asked() -> None:
    def never() -> int:
        raise AssertionError

    assert parse([], {}, memory=never).table() == parse([], {}).table()


def run(*argv: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    given = {**os.environ, **variables}
    command = [sys.executable, "-m", "gb10", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=given, check=False)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["serve", "--recipe", "qwen3.6"], "no recipe named 'qwen3.6'; did you mean qwen3.6-35b-a3b?"),
        (["serve", "--recipe", "/dev/null"], "recipe /dev/null cannot be read: it is a device"),
        (["serve", "--recipe", "none.toml"], "recipe none.toml cannot be read: No such file"),
        (["recipes", "show", "gptoss"], "no recipe named 'gptoss'"),
        (["recipes", "show"], "Missing argument 'name'"),
        (
            ["recipes", "sow"],
            "no command named 'sow'; did you mean show? the commands are: list, show, check, import",
        ),
        (["recipes", "check", "x.toml"], "recipe x.toml cannot be read"),
        (["recipes", "import", "x.yaml"], "x.yaml cannot be read: No such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(argv: list[str], says: str, tmp_path: Path) -> None:
    done = run(*argv, HOME=str(tmp_path))
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.startswith("gb10: error: ") and done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_the_docs_have_the_table() -> None:
    text = (Path(__file__).parents[3] / "docs/recipes.md").read_text()
    assert f"```\n{run('recipes').stdout}```\n" in text


def test_list_and_show(tmp_path: Path) -> None:
    for argv in (["recipes"], ["recipes", "list"]):
        done = run(*argv)
        assert (done.returncode, done.stderr) == (0, "")
        listed = [line.split()[0] for line in done.stdout.splitlines()]
        assert set(listed) == {"name", *recipes.names()}
    for name in recipes.names():
        done = run("recipes", "show", name)
        recipe = recipes.load(name)
        assert (done.returncode, done.stderr) == (0, "")
        assert all(
            word in done.stdout for word in (recipe.model, recipe.revision or "not pinned", "no hardware")
        )
        assert done.stdout.count("  gb10 serve --model ") == len(recipe.machines)
    copy = tmp_path / "copy.toml"
    copy.write_text(run("recipes", "show", QWEN, "--toml").stdout)
    assert recipes.load(str(copy)).serve == recipes.load(QWEN).serve


def test_control_show_says_what_a_recipe_was_run_on(tmp_path: Path) -> None:
    text = recipes.load(QWEN).text.replace("sources =", 'tested = ["GB10"]\nsources =', 1)
    text = text.replace("second = 136.4", "second = 95.5", 1)
    file = tmp_path / "mine.toml"
    file.write_text(text)
    shown = run("recipes", "show", str(file)).stdout
    assert "tested on     GB10" in shown
    assert "predicted: 95.5 tokens a second, one sequence of 1024 tokens" in shown
