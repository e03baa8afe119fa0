"""Recipes of NVIDIA's and eugr's as ours. The files here are written for these tests, by their formats."""

import importlib.util
from pathlib import Path

import pytest

from gb10 import recipes
from gb10.cli import main
from gb10.errors import UserError

if importlib.util.find_spec("yaml") is None:
    pytest.skip("PyYAML is not installed", allow_module_level=True)

from gb10.recipes import imported

NVIDIA = """\
schema_version: 4
title: A model
hardware: dgx-spark
platform:
  os: linux
  execution: container
backend: vllm
backend_version: "0.28.0"
min_vidmem_gb: 128
checkpoint:
  target_label: org/name
limitations:
  - It wants a
    custom image.
topology:
  gpu_count: 1
runtime:
  kind: container
  image: vllm/vllm-openai:v0.28.0
serve:
  label: Launch
  command: |
    export VLLM_A="1"
    export VLLM_B=two VLLM_C='3 4'

    vllm serve org/name \\
      --host 0.0.0.0 \\
      --tensor-parallel-size 1 \\
      --trust-remote-code \\
      --kv_cache_dtype=fp8 \\
      --moe-backend marlin \\
      --gpu-memory-utilization 0.8 \\
      --max-model-len 262144 \\
      --enable-prefix-caching \\
      --no-enable-flashinfer-autotune \\
      --speculative_config.method dspark \\
      --speculative_config.model org/draft \\
      --speculative_config.num_speculative_tokens 7 \\
      --reasoning-parser qwen3 \\
      --tool-call-parser qwen3_xml \\
      --enable-auto-tool-choice
  port: 8000
"""

EUGR = """\
recipe_version: "1"
name: A model
model: org/name
container: vllm-node
build_args: [--pre-tf]
mods:
  - mods/fix
cluster_only: true
defaults:
  port: 8000
  tensor_parallel: 2
  gpu_memory_utilization: 0.4
  max_model_len: 32000
env:
  VLLM_MARLIN_USE_ATOMIC_ADD: 1
command: |
  vllm serve org/name --port {port} -tp {tensor_parallel} \\
    --gpu-memory-utilization {gpu_memory_utilization} \\
    --max-model-len {max_model_len} \\
    --speculative-config '{{"method":"mtp","num_speculative_tokens":3}}' \\
    --distributed-executor-backend ray \\
    --enable-auto-tool-choice --tool-call-parser hermes
"""


def made(tmp_path: Path, text: str) -> tuple[recipes.Recipe, list[str]]:
    file = tmp_path / "theirs.yaml"
    file.write_text(text)
    found = imported.read(file)
    ours = tmp_path / "ours.toml"
    ours.write_text(found.text)
    return recipes.load(str(ours)), found.left


def test_nvidias(tmp_path: Path) -> None:
    recipe, left = made(tmp_path, NVIDIA)
    assert recipe.model == "org/name"
    assert recipe.revision is None and recipe.unpinned == "the imported recipe names no commit"
    assert [(one.memory, one.nodes) for one in recipe.machines] == [(128, 1)]
    assert recipe.serve == {
        "tensor-parallel-size": 1,
        "kv-cache-dtype": "fp8",
        "max-model-len": 262144,
        "enable-prefix-caching": True,
        "enable-flashinfer-autotune": False,
        "speculative-config": {"method": "dspark", "model": "org/draft", "num_speculative_tokens": 7},
        "reasoning-parser": "qwen3",
        "tool-call-parser": "qwen3_xml",
        "enable-auto-tool-choice": True,
    }
    assert left == [
        "runtime.image vllm/vllm-openai:v0.28.0: gb10 brings its own vLLM",
        "backend_version 0.28.0: gb10's is its own",
        "limitations: ['It wants a custom image.']",
        "--host 0.0.0.0: who may ask is the user's choice",
        "--trust-remote-code: a recipe lets no code of a checkpoint run; the user may",
        "--moe-backend marlin: gb10 chooses it (--route)",
        "--gpu-memory-utilization 0.8: gb10 computes it from what is free",
        "VLLM_A=1: set it yourself if it is meant",
        "VLLM_B=two: set it yourself if it is meant",
        "VLLM_C=3 4: set it yourself if it is meant",
    ]


def test_eugrs(tmp_path: Path) -> None:
    recipe, left = made(tmp_path, EUGR)
    assert [(one.memory, one.nodes) for one in recipe.machines] == [(128, 2)]
    assert recipe.serve == {
        "tensor-parallel-size": 2,
        "max-model-len": 32000,
        "speculative-config": {"method": "mtp", "num_speculative_tokens": 3},
        "enable-auto-tool-choice": True,
        "tool-call-parser": "hermes",
    }
    assert left == [
        "container vllm-node: gb10 brings its own vLLM",
        "build_args ['--pre-tf']: gb10 brings its own vLLM",
        "mods ['mods/fix']: gb10's patches are its own (patches/)",
        "cluster_only True: run it with `gb10 cluster`",
        "--port 8000: it is the user's choice",
        "--gpu-memory-utilization 0.4: gb10 computes it from what is free",
        "--distributed-executor-backend ray: gb10 runs several nodes in its own way (--nnodes)",
        "VLLM_MARLIN_USE_ATOMIC_ADD=1: set it yourself if it is meant",
        "memory unsaid: taken for 128 GB",
    ]


def test_toml_to_stdout_and_what_is_left_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "theirs.yaml"
    file.write_text(EUGR)
    assert main(["recipes", "import", str(file)]) == 0
    printed = capsys.readouterr()
    assert 'model = "org/name"' in printed.out and "not carried over" not in printed.out
    assert printed.err.count("not carried over: ") == printed.err.count("\n") == 9


def test_values_that_toml_writes_in_another_way(tmp_path: Path) -> None:
    command = (
        "  vllm serve org/name --override-generation-config "
        """'{{"a b": [1, 2.5, true, null], "c": "q\\"\\\\ü"}}' """
        "--chat-template-content-format string --seed 7 -O3\n"
    )
    text = EUGR[: EUGR.index("  vllm serve")] + command
    recipe, left = made(tmp_path, text.replace("null", '"null"'))
    assert recipe.serve["override-generation-config"] == {"a b": [1, 2.5, True, "null"], "c": 'q"\\ü'}
    assert (recipe.serve["seed"], recipe.serve["optimization-level"]) == (7, 3)
    recipe, left = made(tmp_path, text)
    assert "override-generation-config" not in recipe.serve
    assert any(line.startswith("--override-generation-config ") and "null" in line for line in left)


@pytest.mark.parametrize(
    "words",
    [
        """--speculative-config '{"method": "custom_class", "model": "a.b.C"}'""",
        """--speculative-config '{"method": "mtp", "draft_load_config": {"load_format": "pt"}}'""",
        "--speculative-config.method custom_class --speculative-config.model a.b.C",
        "--reasoning-parser=--trust-remote-code",
    ],
)
def test_what_loads_code_within_an_option_stays_behind(tmp_path: Path, words: str) -> None:
    command = f"  vllm serve org/name {words} --seed 7\n"
    recipe, left = made(
        tmp_path, EUGR[: EUGR.index("  vllm serve")] + command.replace("{", "{{").replace("}", "}}")
    )
    assert recipe.serve == {"seed": 7}
    assert any(line.startswith(words.partition(" ")[0].partition("=")[0].partition(".")[0]) for line in left)


@pytest.mark.parametrize(
    "words",
    [
        "--tool-parser-plugin /tmp/code.py",
        "--middleware some.Module",
        "--logits-processors some:Thing",
        "--worker-cls some.Worker",
        "--allowed-local-media-path /",
        "--chat-template /etc/passwd",
        "--compilation-config.backend some.module",
        "--trust-remote-cod",
        "--api-ke secret-word",
        "--hf-token secret-word",
        "--allowed-origins '[\"*\"]'",
    ],
)
def test_what_loads_code_opens_files_or_is_secret_stays_behind(tmp_path: Path, words: str) -> None:
    command = f"  vllm serve org/name {words} --seed 7\n"
    recipe, left = made(tmp_path, EUGR[: EUGR.index("  vllm serve")] + command)
    assert recipe.serve == {"seed": 7}
    option = words.partition(" ")[0]
    assert any(line.startswith(option) for line in left) and "secret-word" not in "".join(left)
    (tmp_path / "mine.toml").write_text(recipe.text.replace("seed = 7", f"{option.lstrip('-')} = 7"))
    with pytest.raises(UserError, match="cannot be set by a recipe"):
        recipes.load(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no recipe: it is no mapping"),
        ("- a", "is no recipe: it is no mapping"),
        ("a: [", "is not YAML: while parsing"),
        ("a: &x [1]\nb: *x", "it has an alias (*name), which no recipe needs"),
        ("!!python/object/apply:os.system [x]", "is not YAML"),
        ("\0", "is not YAML"),
        ("a: " + "[" * 3000, "is not YAML"),
        ("name: x", "has neither serve.command nor command"),
        ("backend: llama.cpp", "is for llama.cpp, and gb10 serves with vLLM"),
        ("backend: vllm", "has no serve.command"),
        ("command: python run.py", "has no line `vllm serve`"),
        ("command: vllm serve /m", "'/m' is not a name of the hub"),
        ("command: vllm serve", "is not a name of the hub"),
        ("command: vllm serve org/name 'x", "cannot be split as a shell would"),
        ("command: vllm serve org/name --port {port}", "its command cannot be filled in: 'port'"),
        (
            "command: 'vllm serve org/name --x {port.__class__}'",
            "{port.__class__} in its command is no parameter",
        ),
        ("command: 'vllm serve org/name --x {0}'", "its command cannot be filled in"),
        ("command: 'vllm serve org/name --x {port!r}'", "is no parameter"),
        ("command: vllm serve org/name other", "unexpected argument 'other'"),
        ("command: vllm serve org/one\ncommand: vllm serve org/two", "with 'command' twice"),
        ("command: vllm serve org/name\nenv: {A: x, A: y}", "with 'A' twice"),
    ],
)
def test_what_is_no_recipe_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        made(tmp_path, text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match="cannot be read: it is a"):
            imported.read(path)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (2 << 20))
    with pytest.raises(UserError, match="has 2097152 bytes and is no recipe"):
        imported.read(large)
