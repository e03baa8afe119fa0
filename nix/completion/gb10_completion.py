"""Writes the completion of bash, zsh and fish for gb10's programs: ``gb10_completion.py FOLDER``.

The options are those of the parsers themselves, vLLM's among them; shtab makes scripts of them, so that a TAB
starts no Python.
"""

import argparse
import enum
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import shtab
import typer
from typer.main import get_group

from gb10 import bench, cli, cluster
from gb10.arguments import Command
from gb10.bench import command as bench_command
from gb10.cluster import command as cluster_command
from gb10.recipes import command as recipes_command
from gb10.recipes import find
from gb10.serve import launch, settings

_GROUPS: Mapping[str, Mapping[str, Command]] = {
    bench.__name__.rpartition(".")[2]: bench_command._COMMANDS,
    cluster.__name__.rpartition(".")[2]: cluster_command._COMMANDS,
    "recipes": recipes_command._COMMANDS,
}
"""Commands that are groups themselves."""

PROGRAMS = {
    "serve": ("serve", "serve-ray", "serve-cuda", "serve-cuda-12x", "serve-cuda-ray"),
    "audit": ("audit",),
    "bench": ("bench",),
    "cluster": ("cluster",),
    "doctor": ("doctor", "doctor-cuda"),
    "download": ("download",),
    "predict": ("predict",),
    "recipes": ("recipes",),
}
"""By the subcommand of gb10: the programs (nix/apps) that run it."""

FILES = {
    "bash": "bash-completion/completions/{}",
    "zsh": "zsh/site-functions/_{}",
    "fish": "fish/vendor_completions.d/{}.fish",
}
"""Where under share/ a shell looks for a program's completion."""

_HUB = '"${HF_HUB_CACHE:-${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}/hub}"'
_NAMES = f"ls {_HUB} 2>/dev/null | sed -n '/^models--[A-Za-z0-9._-]*$/{{s/^models--//; s/--/\\//; p;}}'"
"""Names of the hub have such letters. Another folder is none of it, and shells expand what they are given."""
_MODEL: dict[str, Any] = {
    # With this ending shtab lets bash quote what it inserts: folders may be named like commands.
    "bash": "_gb10_model_dir",
    "zsh": "_gb10_model",
    "fish": "(__gb10_model)",
    "preamble": {
        "bash": f'_gb10_model_dir() {{\n  compgen -W "$({_NAMES})" -- "$1"\n  compgen -d -- "$1"\n}}',
        "zsh": (
            f'_gb10_model() {{\n  local -a names=(${{(f)"$({_NAMES})"}})\n'
            "  _alternative 'names:model of the hub cache:($names)' 'folders:folder:_files -/'\n}"
        ),
        "fish": (
            "function __gb10_model\n"
            # fish has no ${A:-B}.
            f"  env sh -c {_NAMES!r}\n  __fish_complete_directories (commandline -ct)\nend"
        ),
    },
}
_SHAPES = {"MODEL": _MODEL, "FILE": shtab.FILE, "FOLDER": shtab.DIRECTORY, "DIR": shtab.DIRECTORY}
"""What completes a value, by how a parser's help names it."""

_ALTERNATIVES = re.compile(r"[a-z0-9][a-z0-9_-]*(\|[a-z0-9][a-z0-9_-]*)+")


def _add(
    parser: argparse.ArgumentParser,
    names: Iterable[str],
    text: str | None,
    values: str | int | None,
    shown: str = "",
    choices: Iterable[Any] | None = None,
) -> None:
    """Add an option, or a positional argument, to what is completed; ``values`` of 0 is a switch."""
    known = parser._option_string_actions
    new = [name for name in names if name not in known]
    if not new:
        return
    text = " ".join((text or "").split()).partition(". ")[0].replace("%", "%%") or None
    if values == 0:
        parser.add_argument(*new, action="store_true", help=text)
        return
    action = parser.add_argument(*new, nargs=values if isinstance(values, str) else None, help=text)
    if choices is None and _ALTERNATIVES.fullmatch(shown):
        choices = shown.split("|")
    if choices is not None:
        action.choices = [str(choice) for choice in choices]
    else:
        shape = next((shape for word, shape in _SHAPES.items() if word in re.split(r"\W+", shown)), None)
        if shape is not None:
            action.complete = shape  # type: ignore[attr-defined]


def _add_actions(parser: argparse.ArgumentParser, actions: Iterable[argparse.Action]) -> None:
    for action in actions:
        if not action.option_strings or isinstance(action, argparse._HelpAction):
            continue
        choices = find.names() if "--recipe" in action.option_strings else action.choices
        shown = action.metavar if isinstance(action.metavar, str) else ""
        if "--model" in action.option_strings:
            shown = "MODEL"
        _add(parser, action.option_strings, action.help, action.nargs, shown, choices)


def _serve(parser: argparse.ArgumentParser) -> None:
    """gb10's options and then vLLM's, as ``gb10 serve`` takes them."""
    _add(parser, ["model"], "Folder of a checkpoint, or a hub name", "?", "MODEL")
    _add_actions(parser, settings.build_parser()._actions)
    _add_actions(parser, launch._parser()._actions)


def _typed(parser: argparse.ArgumentParser, command: Command) -> None:
    """The parameters of a function that typer reads."""
    app = typer.Typer(add_completion=False)
    app.callback()(lambda: None)
    app.command("command")(command.load())
    for one in get_group(app).commands["command"].params:
        positional = one.param_type_name == "argument"
        flag = bool(getattr(one, "is_flag", False))
        kind: Any = one.type_descriptor.annotation  # type: ignore[attr-defined]
        kind = getattr(kind, "__args__", [kind])[0]
        choices = (
            [str(each.value) for each in list[enum.Enum](kind)] if isinstance(kind, enum.EnumMeta) else None
        )
        shown = "FILE" if isinstance(kind, type) and issubclass(kind, Path) else str(one.metavar or "")
        names = [one.name] if positional else [*one.opts, *one.secondary_opts]
        many = one.nargs == -1 or (one.multiple and not flag)
        _add(parser, names, getattr(one, "help", None), 0 if flag else "*" if many else None, shown, choices)


def _group(parser: argparse.ArgumentParser, commands: Mapping[str, Command]) -> None:
    below = parser.add_subparsers()
    for name, command in commands.items():
        fill(below.add_parser(name, help=command.summary.replace("%", "%%")), name, command)


def fill(parser: argparse.ArgumentParser, name: str, command: Command) -> None:
    """Give ``parser`` all that the command ``name`` takes."""
    if name == "serve":
        _serve(parser)
    elif name in _GROUPS and command.passed_on:
        if name == "bench":
            # Without a subcommand it is `measure`.
            options = argparse.ArgumentParser(add_help=False)
            _typed(options, bench_command._COMMANDS["measure"])
            _add_actions(parser, options._actions)
        _group(parser, _GROUPS[name])
    else:
        _typed(parser, command)


def parsers() -> dict[str, argparse.ArgumentParser]:
    """What is completed, by program."""
    whole = argparse.ArgumentParser(prog="gb10")
    whole.add_argument("-V", "--version", action="store_true", help="Print the version")
    _group(whole, cli.COMMANDS)
    result = {"gb10": whole}
    for name, programs in PROGRAMS.items():
        for program in programs:
            result[program] = argparse.ArgumentParser(prog=program)
            fill(result[program], name, cli.COMMANDS[name])
    return result


def main(folder: Path) -> None:
    """Write ``folder``/PROGRAM/share/… for each program and shell."""
    for program, parser in parsers().items():
        for shell, place in FILES.items():
            path = folder / program / "share" / place.format(program)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(shtab.complete(parser, shell) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
