"""The group of commands: what help costs, what is refused and how, what reaches a command."""

import os
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path

import pytest

from gb10 import cli
from gb10.arguments import Command, run, spread
from gb10.errors import ServerFailed, UserError

HEAVY = {"torch", "vllm", "numpy", "transformers", "pydantic", "rich"}


def python(program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )


def seconds(*command: str) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, *command], capture_output=True, timeout=60, check=True)
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("argv", "heavy"),
    [
        (["--help"], set()),
        (["--version"], set()),
        (["serve", "--help"], set()),
        (["routing", "--help"], {"pydantic"}),  # typer reads values with it
        (["routing", "--capability", "12.1", "--no-flashinfer"], {"pydantic"}),
    ],
)
def test_what_imports_nothing_heavy(argv: list[str], heavy: set[str]) -> None:
    done = python(
        f"import sys; from gb10.cli import main\ntry: main({argv!r})\nexcept SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    assert set(done.stderr.split()) & HEAVY <= heavy
    assert any(word in done.stdout for word in ("gb10", "usage: serve", "compute capability"))
    assert max(len(line) for line in done.stdout.splitlines()) <= 100


def test_help_takes_little_more_than_python() -> None:
    bare = statistics.median(seconds("-c", "pass") for _ in range(5))
    found = statistics.median(seconds("-m", "gb10", "--help") for _ in range(5))
    assert found - bare < 1, f"{found:.2f} s, Python alone {bare:.2f} s; 0.15 s on an idle machine"


def test_empty_variables_are_unset_for_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """But an empty list of devices says that there is no GPU."""
    monkeypatch.setenv("SOME_VARIABLE", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cli.main(["--version"]) == 0
    assert "SOME_VARIABLE" not in os.environ
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--help"], ["-h"], ["help"]):
        assert cli.main(argv) == 0
        printed = capsys.readouterr()
        listed = printed.out.partition("Commands:")[2].splitlines()
        assert [line.split()[0] for line in listed if line] == list(cli.COMMANDS)
        assert printed.err == ""


def test_no_command_is_help_and_exit_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Commands:" in printed.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--version"], ["-V"]):
        assert cli.main(argv) == 0
        assert capsys.readouterr().out.startswith("gb10 0.")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["sevre"],
            "no command named 'sevre'; did you mean serve? the commands are: " + ", ".join(cli.COMMANDS),
        ),
        (["quote"], "no command named 'quote'; the commands are: " + ", ".join(cli.COMMANDS)),
        (["--nonsense"], "No such option: --nonsense (see: gb10 --help)"),
        (["routing", "--xyzzy"], "No such option: --xyzzy (see: gb10 routing --help)"),
        (
            ["routing", "--capability"],
            "Option '--capability' requires an argument. (see: gb10 routing --help)",
        ),
        (["routing", "--capability", "big"], "--capability 'big' is neither cpu nor a compute capability"),
        (["routing", "--cpu-mode", "fast"], "'fast' is not one of 'dequant', 'packed', 'emulate'"),
        (["routing", "--route", "moe"], "--route 'moe' is not OPERATION=BACKEND"),
        (["routing", "model", "stray"], "Got unexpected extra argument(s) (stray)"),
        (["sparse24"], "Missing argument 'FILE'"),
        (["sparse24", "/nonexistent"], "/nonexistent cannot be read: No such file or directory"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_exit_status_2(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("gb10: error: ")
    assert said in printed.err
    assert printed.err.count("\n") == 1


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module whose function `raw` is a command that reads its own arguments."""
    module = types.ModuleType("gb10_test_commands")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def call(argv: Sequence[str]) -> int:
    commands = {
        "raw": Command("gb10_test_commands:raw", "takes all", passed_on=True),
        "gone": Command("no_such_module:run", "is never imported here"),
    }
    return run("test", "A group.", commands, argv)


def test_arguments_are_passed_on_untouched(group: types.ModuleType) -> None:
    given = ["--help", "-tp", "2", "--", "-cc.mode=none", "", "--version", "-1", "--a=b c"]
    got: list[str] = []

    def raw(arguments: list[str]) -> int:
        got.extend(arguments)
        return 7

    group.raw = raw  # type: ignore[attr-defined]
    assert call(["raw", *given]) == 7
    assert got == given


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("no"), 2, "gb10: error: no\n"),
        (ServerFailed("died"), 1, "gb10: error: died\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_statuses(
    error: BaseException, status: int, said: str, group: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def raw(arguments: list[str]) -> int:
        raise error

    group.raw = raw  # type: ignore[attr-defined]
    assert call(["raw"]) == status
    assert capsys.readouterr().err == said


def test_other_errors_are_not_hidden(group: types.ModuleType) -> None:
    def raw(arguments: list[str]) -> int:
        raise ZeroDivisionError

    group.raw = raw  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        call(["raw"])


COMMANDS = [["--help"], ["recipes"], ["routing", "--capability", "12.1"], ["doctor", "--quick"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_output_that_cannot_be_written(command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gb10", *command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stderr == "gb10: error: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_output_that_is_closed_is_not_wanted(command: list[str]) -> None:
    program = [sys.executable, "-m", "gb10", *command]
    shown = subprocess.run(program, capture_output=True, text=True, timeout=60)
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *program], stderr=subprocess.PIPE, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (shown.returncode, shown.stderr)


def test_broken_pipe_is_quiet() -> None:
    command = f"set -o pipefail; {sys.executable} -m gb10 routing --capability 12.1 | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("given", "result"),
    [
        ("--many 1 2 3 --one 4", "--many 1 --many 2 --many 3 --one 4"),
        ("--many 1 --many 2 3", "--many 1 --many 2 --many 3"),
        ("--one 1 stray --many 2", "--one 1 stray --many 2"),
        ("--many", "--many"),
        ("--many --one 1", "--many --one 1"),
        ("", ""),
    ],
)
def test_options_of_several_values(given: str, result: str) -> None:
    assert spread(given.split(), {"--many"}) == result.split()


def test_a_pipe_is_no_safetensors_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "x.safetensors"
    os.mkfifo(pipe)
    assert cli.main(["sparse24", str(pipe)]) == 2
    said = capsys.readouterr().err
    assert said == f"gb10: error: {pipe} cannot be read: it is a named pipe (FIFO), not a file\n"
