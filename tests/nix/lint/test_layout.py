"""layout.py finds what nixfmt would never write, and nothing in what nixfmt wrote."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
# The exit status of a tool that cannot do its work.
BAD_INPUT = 2

# Written by nixfmt; each of its lines is a layout that a rule has to let through.
GOOD = """\
# What the file is.
{
  lib,
  stdenv, # why
  config ? { },
  ...
}@args:

let
  inherit (lib) optional;
  one = {
    a = 1;
  };
  # A comment.
  two = one // {
    b = -1;
  };
  f = x: y: if x == y then !x else x.a or y;
in
{
  inherit one two;
  list = [
    1
    (f 2 3)
    /* bash */ ''
      echo ${toString 1}
        keep
    ''
    [ ]
  ];

  short = [
    "a"
    ./b.nix
  ]
  ++ optional (args ? x."y") stdenv;
  text = ''
    any   text  is
       left alone
  '';
  many =
    with lib;
    assert true;
    map (n: n + 1) [
      1
      2
    ];
}
"""

BAD = {
    "blank before a semicolon": ("{\n  a = 1 ;\n}\n", 2, "want no blank before `;`"),
    "two blanks": ("{\n  a =  1;\n}\n", 2, "want a single blank before `1`"),
    "no blank": ("{\n  a =1;\n}\n", 2, "want a single blank before `1`"),
    "no blank around an operator": ("1+2\n", 1, "want a single blank before `+`"),
    "blank inside a parenthesis": ("f ( a)\n", 1, "want no blank before `a`"),
    "no blank inside a list": ("[1]\n", 1, "want a single blank before `1`"),
    "no blank inside a set": ("{a = 1;}\n", 1, "want a single blank before `a`"),
    "no blank after a colon": ("{ a }:a\n", 1, "want a single blank before `a`"),
    "blank before a colon": ("a : 1\n", 1, "want no blank before `:`"),
    "odd indentation": ("{\n   a = 1;\n}\n", 2, "indented by 3, which is no multiple of 2"),
    "indented too far": ("f {\n      a = 1;\n}\n", 2, "indented by 6 after a line indented by 0"),
    "item indented wrongly": ("{\n  a = {\n  b = 1;\n  };\n}\n", 3, "want `b = 1;` indented by 4"),
    "tab": ("{\n\ta = 1;\n}\n", 2, "indented by 1, which is no multiple of 2"),
    "two blank lines": ("{\n  a = 1;\n\n\n  b = 2;\n}\n", 5, "more than one blank line"),
    "blank at a line's end": ("{ \n  a = 1;\n}\n", 1, "blanks at the end of the line"),
    "no line end": ("1", 1, "the file must start with code and end with one line end"),
    "empty last line": ("1\n\n", 1, "the file must start with code and end with one line end"),
    "two bindings in one line": (
        "{ a = 1; b = 2; }\n",
        1,
        "want one line for each binding of a set that has more than one",
    ),
    "binding beside its brace": ("{ a = 1;\n}\n", 1, "want a new line after `{`"),
    "brace beside its binding": ("{\n  a = 1; }\n", 2, "want `}` on a line of its own"),
    "brace indented wrongly": ("{\n  a = {\n    b = 1;\n    };\n}\n", 4, "like the line that opens it"),
    "bindings share a line": ("{\n  a = 1; b = 2;\n}\n", 2, "want `b = 2;` on a line of its own"),
    "elements share a line": ("[\n  1 2\n]\n", 2, "want `2` on a line of its own"),
    "let in one line": ("let a = 1; in a\n", 1, "want a new line after `let`"),
    "in beside a binding": ("let\n  a = 1; in\na\n", 2, "want `in` on a line of its own"),
    "no last comma": ("{\n  a,\n  b\n}:\na b\n", 3, "want a comma after `b`, the last of a pattern"),
    "comma before an argument": ("{\n  a\n  , b\n}:\na b\n", 3, "want `b` on a line of its own"),
}


def test_what_nixfmt_wrote_passes(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.nix"
    path.write_text(GOOD)
    result = run("layout.py", path)
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


@pytest.mark.parametrize("name", BAD)
def test_reports_a_broken_rule(name: str, run: Run, tmp_path: Path) -> None:
    source, line, message = BAD[name]
    path = tmp_path / "x.nix"
    path.write_text(source)
    result = run("layout.py", path)
    assert result.returncode == 1
    hits = [text for text in result.stdout.splitlines() if text.startswith(f"{path}:{line}: ")]
    assert any(message in text for text in hits), result.stdout + result.stderr


def test_a_syntax_error_is_one_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.nix"
    path.write_text("{ a = 1 }\n")
    result = run("layout.py", path)
    assert (result.returncode, result.stderr) == (
        BAD_INPUT,
        f"layout: {path}:1: this does not parse as Nix\n",
    )
