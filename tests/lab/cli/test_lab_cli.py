"""The lab's group of commands."""

import subprocess
import sys

import pytest

from gb10_lab.cli import COMMANDS, main


def test_help_lists_the_commands_and_imports_none() -> None:
    program = (
        "import sys; from gb10_lab.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    listed = done.stdout.partition("Commands:")[2].splitlines()
    names = ["corpus", "tokenizer", "train", "compare", "quantize", "quality", "speculative"]
    names += [
        "kernel-bench",
        "kernel-bits",
        "kernel-smoke",
        "kernel-prefill",
        "engine-bench",
        "quality-served",
        "serve-check",
        "engine-compare",
        "shape",
        "two-nodes",
    ]
    assert [line.split()[0] for line in listed if line] == names
    modules = set(done.stderr.split())
    assert {name for name in modules if name.startswith("gb10")} == {
        *("gb10", "gb10.arguments", "gb10.errors", "gb10_lab", "gb10_lab.cli")
    }
    assert not modules & {"torch", "vllm", "numpy", "tokenizers", "pydantic", "rich"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert name.replace("-", "_") in lines[0].replace("-", "_")
    assert max(map(len, lines)) <= 100


def test_corpus_and_quantize_import_little() -> None:
    """The derivations of the text and of the demo model name these files and packages, and no others."""
    program = "import sys, importlib; importlib.import_module(sys.argv[1]); print(*sys.modules)"

    def imported(module: str) -> set[str]:
        command = [sys.executable, "-c", program, module]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert not {"vllm", "transformers", "tokenizers", "huggingface_hub"} & set(found)
        return {name for name in found if name.startswith("gb10")}

    own = {"gb10", "gb10.errors", "gb10.files", "gb10_lab"}
    text = {"gb10_lab.text", "gb10_lab.text.corpus", "gb10_lab.text.documents"}
    assert imported("gb10_lab.text.corpus") == own | text
    found = imported("gb10_lab.testbed.quantize")
    assert found >= own | {"gb10.checkpoint.modelopt", "gb10.nvfp4"}
    assert not {name for name in found if name.startswith(("gb10_lab.training", "gb10_lab.quality"))}
    assert not found & {"gb10_lab.testbed.delta", "gb10_lab.testbed.mtp", "gb10.serve", "gb10.routing"}
