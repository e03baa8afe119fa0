"""deadcode.py finds what nothing uses and leaves alone what something uses."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
# The exit status of a tool that cannot do its work.
BAD_INPUT = 2

DEAD = {
    "let binding": ("let\n  a = 1;\n  b = 2;\nin\na", [(3, "unused let binding `b`")]),
    "let attribute path": ("let\n  a.b = 1;\n  a.c = 2;\nin\n1", [(2, "unused let binding `a`")]),
    "inherit in let": ("lib: let\n  inherit (lib) x y;\nin x", [(2, "unused inherited let binding `y`")]),
    "plain inherit in let": ("x: let\n  inherit x;\nin 1", [(2, "unused inherited let binding `x`")]),
    "only uses itself": ("let\n  f = n: f (n - 1);\nin 1", [(2, "unused let binding `f`")]),
    "only use each other": (
        "let\n  a = b;\n  b = a;\nin 1",
        [(2, "unused let binding `a`"), (3, "unused let binding `b`")],
    ),
    "only used by dead code": (
        "let\n  a = 1;\n  b = a;\nin 1",
        [(2, "unused let binding `a`"), (3, "unused let binding `b`")],
    ),
    "pattern argument": ("{ a, b }:\na", [(1, "unused pattern argument `b`")]),
    "with ellipsis": ("{\n  a,\n  b ? 1,\n  ...\n}:\na", [(3, "unused pattern argument `b`")]),
    "@-pattern name": ("{ a, ... }@args:\na", [(1, "unused @-pattern name `args`")]),
    "shadowed": ("let\n  a = 1;\nin\na: a", [(2, "unused let binding `a`")]),
    "only named in a string": ("let\n  a = 1;\nin ''a $a ''${a}''", [(2, "unused let binding `a`")]),
    "only an attribute's name": ("let\n  a = 1;\nin { a = 2; b = { }.a; }", [(2, "unused let binding `a`")]),
    "only inherited from elsewhere": (
        "s: let\n  a = 1;\nin { inherit (s) a; }",
        [(2, "unused let binding `a`")],
    ),
    "inside a function": ("x: let\n  y = x;\nin x", [(2, "unused let binding `y`")]),
    "empty let": ("let\nin\n1", [(1, "`let` without bindings")]),
    "with that gives nothing": ("lib: a:\nwith lib; a", [(2, "`with` that no name needs")]),
    "with cannot use a let name": (
        "lib: let\n  x = 1;\n  y = 2;\nin with lib; z + x",
        [(3, "unused let binding `y`")],
    ),
}

ALIVE = {
    "used in the body": "let a = 1; in a",
    "used in a string": 'let a = "1"; in "x${a}"',
    "used in an indented string": "let a = \"1\"; in ''\n  ${a}\n''",
    "used in a path": 'let a = "b"; in ./x/${a}.nix',
    "used as a computed attribute": 'let a = "b"; in { ${a} = 1; }',
    "used as a computed selector": 'let a = "b"; in s: s.${a} or 1',
    "used in `?`": 'let a = "b"; in s: s ? ${a}',
    "used by inherit": "let a = 1; in { inherit a; }",
    "used as the set of an inherit": "let s = { a = 1; }; in { inherit (s) a; }",
    "used as the set of a let's inherit": "let s = { a = 1; }; inherit (s) a; in a",
    "used through another binding": "let a = 1; b = a; in b",
    "used by a default": "let d = 1; in { a ? d }: a",
    "argument used by a default": "{ a, b ? a }: b",
    "used by assert": "let a = true; in assert a; 1",
    "used by a rec set": "let a = 1; in rec { b = a; c = b; }",
    "attributes of a rec set": "rec { a = 1; }",
    "used by the set of a with": "let s = { a = 1; }; in with s; a",
    "@-name is read": "{ a, b, ... }@args: args",
    "@-name is read, name first": "args@{ a, b, }: builtins.attrNames args",
    "underscore": "{ _a, b }: let _c = 1; in b",
    "plain arguments": "final: prev: { }",
    "trailing comma": "{\n  a, # why\n  b,\n}:\na b",
    "recursive and used": "let f = n: f n; in f 1",
}


@pytest.mark.parametrize("name", DEAD)
def test_reports_dead_code(name: str, run: Run, tmp_path: Path) -> None:
    source, expected = DEAD[name]
    path = tmp_path / "x.nix"
    path.write_text(source)
    result = run("deadcode.py", path)
    assert result.stdout.splitlines() == [f"{path}:{line}: {message}" for line, message in expected]
    assert result.returncode == 1


@pytest.mark.parametrize("name", ALIVE)
def test_leaves_used_code_alone(name: str, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.nix"
    path.write_text(ALIVE[name])
    result = run("deadcode.py", path)
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


def test_reads_folders(run: Run, write: Callable[[dict[str, str]], Path]) -> None:
    root = write({"a/b.nix": "let x = 1; in 2", "c.nix": "{ y }: 1", "d.txt": "let z = 1; in 2"})
    result = run("deadcode.py", root)
    assert result.stdout.splitlines() == [
        f"{root}/a/b.nix:1: unused let binding `x`",
        f"{root}/c.nix:1: unused pattern argument `y`",
    ]


@pytest.mark.parametrize("source", ["let a = 1 in a", "{ a = 1 }", "{ a b }: a", "("])
def test_a_syntax_error_is_one_line(source: str, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.nix"
    path.write_text(source)
    result = run("deadcode.py", path)
    assert result.returncode == BAD_INPUT
    assert result.stderr == f"deadcode: {path}:1: this does not parse as Nix\n"


def test_a_missing_file_is_one_line(run: Run, tmp_path: Path) -> None:
    result = run("deadcode.py", tmp_path / "none.nix")
    assert result.returncode == BAD_INPUT
    assert result.stderr == f"deadcode: {tmp_path}/none.nix: no such file or folder\n"
