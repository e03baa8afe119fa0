"""Completion in real shells, and that no parser has an option without one."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from typer.main import get_group

from gb10 import cli
from gb10.arguments import Command
from gb10.bench import command as bench_command
from gb10.cluster import command as cluster_command
from gb10.recipes import command as recipes_command
from gb10.recipes import find
from gb10.serve import launch, settings

ROOT = Path(__file__).parents[3]
GROUPS = {
    "bench": bench_command._COMMANDS,
    "cluster": cluster_command._COMMANDS,
    "recipes": recipes_command._COMMANDS,
}
WITHIN = 0.2
"""Seconds that a TAB may take."""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the completion of each program, as the package has it."""
    folder = tmp_path_factory.mktemp("completion")
    command = [sys.executable, str(ROOT / "nix/completion/gb10_completion.py"), str(folder)]
    subprocess.run(command, check=True, timeout=300)
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a model in its hub cache, and a folder of a checkpoint."""
    (tmp_path / ".cache/huggingface/hub/models--acme--Little-NVFP4").mkdir(parents=True)
    (tmp_path / ".cache/huggingface/hub/datasets--acme--texts").mkdir()
    (tmp_path / "checkpoint").mkdir()
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "PATH": os.environ["PATH"], "TERM": "dumb"}


def bash(scripts: Path, home: Path, words: Sequence[str]) -> list[str]:
    """What bash offers for the last of ``words``."""
    script = scripts / words[0] / "share/bash-completion/completions" / words[0]
    lines = """
        source "$1"; shift
        function=$(complete -p "$1"); function=${function##*-F }; function=${function%% *}
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
        "$function" "$1" "${@: -1}" "${@: -2:1}" 2>/dev/null
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    command = [os.environ.get("GB10_BASH", "bash"), "--norc", "-c", lines, "bash", str(script), *words]
    answer = subprocess.run(
        command, env=environment(home), cwd=home, capture_output=True, text=True, timeout=60, check=False
    )
    return answer.stdout.split()


def fish(scripts: Path, home: Path, words: Sequence[str]) -> list[str]:
    """What fish offers for the last of ``words``."""
    script = scripts / words[0] / f"share/fish/vendor_completions.d/{words[0]}.fish"
    command = [
        "fish",
        "--no-config",
        "-c",
        "source $argv[1]; complete -C $argv[2]",
        str(script),
        " ".join(words),
    ]
    answer = subprocess.run(
        command, env=environment(home), cwd=home, capture_output=True, text=True, timeout=60, check=True
    )
    return [line.partition("\t")[0] for line in answer.stdout.splitlines()]


def _until(terminal: int, end: str) -> str:
    seen, limit = "", time.monotonic() + 20
    while end not in seen:
        assert time.monotonic() < limit, f"no {end!r} in {seen!r}"
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 65536).decode(errors="replace")
    return seen


@contextmanager
def terminal(command: Sequence[str], home: Path) -> Iterator[int]:
    """A shell on a terminal of its own, in ``home``: the end that types and reads."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(home), cwd=home
    ) as shell:
        os.close(theirs)
        try:
            yield ours
        finally:
            shell.kill()
            os.close(ours)


def zsh(scripts: Path, home: Path, words: Sequence[str]) -> list[str]:
    """The words that zsh makes of ``words`` after a TAB, where there is one choice."""
    folder = scripts / words[0] / "share/zsh/site-functions"
    with terminal(["zsh", "-f", "-i"], home) as ours:
        start = f"PS1=; fpath=({folder} $fpath); autoload -U compinit; compinit -u -D; print REA''DY\n"
        os.write(ours, start.encode())
        _until(ours, "READY\r\n")
        os.write(ours, f"{' '.join(words)}\t".encode())
        time.sleep(2)
        os.write(ours, b"\x01print -r -- WO''RDS \x05 EN''D\n")
        return _until(ours, " END\r\n").rpartition("WORDS ")[2].partition(" END")[0].split()


SHELLS = {"bash": bash, "fish": fish, "zsh": zsh}


HOSTILE = (
    "$(touch${IFS}RAN)",
    "`touch RAN`",
    "a;touch RAN",
    " \nmodels--$(touch RAN)",
    "'$(touch RAN)",
    '"; touch RAN',
)
"""Ends of folders' names in a cache that others can write to."""


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    """Each shell that is here: the Debian stand-in has bash alone."""
    name: str = request.param
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here")
    return name


def test_a_tab_runs_nothing(scripts: Path, home: Path, shell: str) -> None:
    for end in HOSTILE:
        (home / f".cache/huggingface/hub/models--acme--L{end}").mkdir()
    # zsh gives the whole line.
    offered = [word for word in SHELLS[shell](scripts, home, ["serve", "acme/L"]) if word != "serve"]
    assert offered == ["acme/Little-NVFP4"]
    assert not list(home.rglob("RAN"))


@pytest.mark.parametrize("folder", ["x$(touch RAN)", "x;touch RAN", "x`touch RAN`", "x y"])
def test_bash_quotes_what_it_inserts(scripts: Path, home: Path, folder: str) -> None:
    """In a line that is edited: a checkpoint's folder may be named like a command."""
    (home / folder).mkdir()
    for command in ("serve", "audit"):
        script = scripts / command / "share/bash-completion/completions" / command
        with terminal([os.environ.get("GB10_BASH", "bash"), "--norc", "-i"], home) as ours:
            show = f'{command}() {{ printf "GOT<%s>" "$@"; echo; }}; source {script}; echo REA""DY\n'
            os.write(ours, show.encode())
            _until(ours, "READY\r\n")
            os.write(ours, f"{command} x\t".encode())
            time.sleep(1)
            os.write(ours, b"\n")
            assert f"GOT<{folder}" in _until(ours, ">\r\n"), folder
    assert not list(home.rglob("RAN"))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["serve", "--recip"], "--recipe"),
        (["serve", "--max-num-seq"], "--max-num-seqs"),
        (["serve", "--recipe", find.names()[0][:-1]], find.names()[0]),
        (["serve", "acme/L"], "acme/Little-NVFP4"),
        (["serve-cuda", "checkp"], "checkpoint/"),
        (["serve", "--model", "acme/L"], "acme/Little-NVFP4"),
        (["gb10", "doct"], "doctor"),
        (["gb10", "serve", "--max-num-seq"], "--max-num-seqs"),
        (["gb10", "bench", "comp"], "compare"),
        (["doctor", "--qui"], "--quick"),
    ],
    ids=" ".join,
)
def test_a_shell_completes(scripts: Path, home: Path, shell: str, words: list[str], wanted: str) -> None:
    offered = SHELLS[shell](scripts, home, words)
    assert wanted.rstrip("/") in [each.rstrip("/") for each in offered]
    assert not [each for each in offered if "texts" in each]


def test_a_tab_starts_no_python(scripts: Path, home: Path) -> None:
    started = time.monotonic()
    assert bash(scripts, home, ["gb10", "serve", "--max-num-seq"])
    assert time.monotonic() - started < 5 * WITHIN, (
        "with the start of bash, on a machine that does other work"
    )
    assert "python" not in (scripts / "gb10/share/bash-completion/completions/gb10").read_text().lower()


def parameters(command: Command) -> set[str]:
    app = typer.Typer()
    app.callback()(lambda: None)
    app.command("one")(command.load())
    found = get_group(app).commands["one"].params
    return {
        name for one in found if one.param_type_name == "option" for name in (*one.opts, *one.secondary_opts)
    }


def expected() -> list[tuple[list[str], set[str]]]:
    """Commands as words, and all their options, from their parsers."""
    vllms = launch._parser()._option_string_actions
    serves = {*vllms, *settings.build_parser()._option_string_actions}
    result: list[tuple[list[str], set[str]]] = []
    for name, command in cli.COMMANDS.items():
        if name == "serve":
            result.append(([name], serves))
        elif command.passed_on:
            result += [([name, below], parameters(one)) for below, one in GROUPS[name].items()]
        else:
            result.append(([name], parameters(command)))
    return result


def test_every_option_of_every_parser_has_a_completion(scripts: Path, home: Path) -> None:
    rows = expected()
    assert sum(len(options) for _, options in rows) > 300
    for words, options in rows:
        offered = set(bash(scripts, home, ["gb10", *words, "-"]))
        assert not options - offered, words


def test_every_command_has_a_completion(scripts: Path, home: Path) -> None:
    assert {*cli.COMMANDS} <= {*bash(scripts, home, ["gb10", ""])}
    for name, below in GROUPS.items():
        assert {*below} <= {*bash(scripts, home, ["gb10", name, ""])}
