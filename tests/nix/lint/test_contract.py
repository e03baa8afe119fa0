"""contract.py holds the flake to nix/CONTRACT.md, in both directions."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

Write = Callable[[Mapping[str, str]], Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
# The exit status of a tool that cannot do its work.
BAD_INPUT = 2
TOOLS = Path(__file__).resolve().parents[3] / "nix" / "checks" / "lint"

FLAKE = """\
{
  outputs =
    { nixpkgs, ... }:
    let
      inherit (nixpkgs) lib;
      each = f: lib.genAttrs [ "x86_64-linux" ] (system: f nixpkgs.legacyPackages.${system});
    in
    {
      overlays.default = import ./overlays;
      packages = each (pkgs: import ./nix/packages.nix { inherit pkgs; });
    };
}
"""
OVERLAY = """\
final: prev: {
  gb10 = prev.gb10 or { } // {
    python = final.python311;
    tool = final.callPackage ../nix/tool.nix { flavour = "cpu"; };
  };
}
"""
PACKAGES = "{ pkgs }: { inherit (pkgs.gb10) tool; script = pkgs.writeShellApplication { }; }\n"
TOOL = """\
{ stdenv, fetchurl, gb10, flavour }:
stdenv.mkDerivation {
  name = flavour;
  src = fetchurl { };
  py = gb10.python.interpreter;
}
"""
DEBIAN = """\
{
  lib.genAttrs = names: f: { };
  callPackage = path: args: { };
  fetchurl = args: { };
  python311 = { interpreter = ""; };
  stdenv.mkDerivation = args: { };
  writeShellApplication = args: { };
}
"""
NAMES = [
    "callPackage",
    "fetchurl",
    "lib.genAttrs",
    "python311",
    "python311.interpreter",
    "stdenv.mkDerivation",
    "writeShellApplication",
]


def contract(*names: str) -> str:
    """Return a contract that lists `names`; a name may bring its own reason after a blank."""
    rows = [name.partition(" ") for name in names]
    lines = [f"| `{name}` | {reason or 'why it is needed'} |" for name, _, reason in rows]
    return "\n".join(["# Contract", "", "| name | why |", "| --- | --- |", *lines, ""])


def tree(**changes: str) -> dict[str, str]:
    """Return a flake that keeps its contract, with the given parts changed."""
    parts = {
        "flake": FLAKE,
        "overlay": OVERLAY,
        "packages": PACKAGES,
        "tool": TOOL,
        "debian": DEBIAN,
        "contract": contract(*NAMES),
    } | changes
    return {
        "flake.nix": parts["flake"],
        "overlays/default.nix": parts["overlay"],
        "nix/packages.nix": parts["packages"],
        "nix/tool.nix": parts["tool"],
        "nix/debian/default.nix": parts["debian"],
        "nix/CONTRACT.md": parts["contract"],
    }


def test_a_flake_that_keeps_its_contract_passes(run: Run, write: Write) -> None:
    result = run("contract.py", write(tree()))
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


def test_uses_are_named_with_their_places(run: Run, write: Write) -> None:
    result = run("contract.py", "--uses", write(tree()))
    assert result.stdout.splitlines() == [
        "callPackage: overlays/default.nix:4",
        "fetchurl: nix/tool.nix:4",
        "lib.genAttrs: flake.nix:6",
        "python311: overlays/default.nix:3",
        "python311.interpreter: nix/tool.nix:5",
        "stdenv.mkDerivation: nix/tool.nix:2",
        "writeShellApplication: nix/packages.nix:1",
    ]


def test_a_use_that_is_not_listed_fails(run: Run, write: Write) -> None:
    names = [name for name in NAMES if name != "fetchurl"]
    result = run("contract.py", write(tree(contract=contract(*names))))
    assert result.stdout == "nix/tool.nix:4: uses `fetchurl`, which CONTRACT.md does not list\n"
    assert result.returncode == 1


def test_a_listed_name_that_nothing_uses_fails(run: Run, write: Write) -> None:
    files = tree(contract=contract(*NAMES, "zlib"), debian=DEBIAN.replace("{\n", "{\n  zlib = 1;\n", 1))
    result = run("contract.py", write(files))
    assert result.stdout == "CONTRACT.md:12: lists `zlib`, which nothing uses\n"
    assert result.returncode == 1


def test_a_name_that_the_stand_in_lacks_fails(run: Run, write: Write) -> None:
    files = tree(debian=DEBIAN.replace("fetchurl", "fetchtar"))
    result = run("contract.py", write(files))
    assert result.stdout == "nix/debian lacks `fetchurl`, which CONTRACT.md lists\n"
    assert result.returncode == 1


def test_what_an_evaluation_found_decides(run: Run, write: Write, tmp_path: Path) -> None:
    root = write(tree())
    offered = tmp_path / "offered.json"
    offered.write_text(json.dumps(NAMES))
    assert run("contract.py", root, "--offered", offered).returncode == 0
    offered.write_text(json.dumps([name for name in NAMES if name != "lib.genAttrs"]))
    result = run("contract.py", root, "--offered", offered)
    assert result.stdout == "nix/debian lacks `lib.genAttrs`, which CONTRACT.md lists\n"
    assert result.returncode == 1


def test_names_are_json_without_optional_ones(run: Run, write: Write) -> None:
    root = write(tree(contract=contract("b.*", "a", "c optional: only nixpkgs has it")))
    assert json.loads(run("contract.py", "--names", root).stdout) == ["a", "b"]


@pytest.mark.skipif(shutil.which("nix") is None, reason="needs nix to evaluate contract.nix")
def test_an_evaluation_says_what_a_base_has(write: Write) -> None:
    listed = contract("stdenv.mkDerivation", "lib.*", "zlib", "zlib.dev", "gone", "gpu optional: not here")
    root = write({"CONTRACT.md": listed})
    # Nothing on the way but sets is evaluated: a package that throws is there all the same.
    base = '{ stdenv.mkDerivation = throw ""; lib = { }; zlib = "no set"; }'
    expression = f"import {TOOLS}/contract.nix {{ contract = {root}/CONTRACT.md; pkgs = {base}; }}"
    options = ["--extra-experimental-features", "nix-command", "--store", "dummy://", "--impure", "--json"]
    result = subprocess.run(
        ["nix", "eval", *options, "--expr", expression], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == {
        "offered": ["stdenv.mkDerivation", "lib", "zlib"],
        "missing": ["zlib.dev", "gone"],
    }


def test_an_optional_name_may_be_absent_but_must_be_listed(run: Run, write: Write) -> None:
    packages = PACKAGES.replace("script =", "gpu = pkgs.cudaPackages or null; script =")
    unlisted = run("contract.py", write(tree(packages=packages)))
    assert "uses `cudaPackages`" in unlisted.stdout
    listed = contract(*NAMES, "cudaPackages optional: only nixpkgs has it")
    assert run("contract.py", write(tree(packages=packages, contract=listed))).stdout == ""


def test_a_star_allows_everything_below(run: Run, write: Write) -> None:
    names = [name for name in NAMES if name != "stdenv.mkDerivation"]
    assert run("contract.py", write(tree(contract=contract(*names, "stdenv.*")))).stdout == ""
    result = run("contract.py", write(tree(contract=contract(*names, "stdenv"))))
    assert "uses `stdenv.mkDerivation`" in result.stdout
    assert "lists `stdenv`, which nothing uses" in result.stdout


# What nix/packages.nix says -> the uses it must be seen to make there.
SEEN = {
    "{ pkgs }: pkgs.a.b": ["a.b"],
    '{ pkgs }: "${pkgs.a}/bin"': ["a"],
    "{ pkgs }: ''\n  ${pkgs.a}\n''": ["a"],
    "{ pkgs }: { inherit (pkgs) a b; }": ["a", "b"],
    "{ pkgs }: let inherit (pkgs) lib a; in lib.x a": ["a", "lib.x"],
    "{ pkgs }: let inherit (pkgs.lib) x; in x 1": ["lib.x"],
    "{ pkgs }: let p = pkgs; in p.a": ["a"],
    "{ pkgs }: let py = pkgs.python3; in py.pkgs.pip": ["python3.pkgs.pip"],
    "{ pkgs }: let py = pkgs.python3; in { inherit py; }": ["python3"],
    "{ pkgs }: (if true then pkgs else pkgs.b).a": ["a", "b.a"],
    "{ lib }: lib.types.str": ["lib.types.str"],
    "{ nixpkgs }: system: (import nixpkgs { inherit system; }).a": ["a"],
    "{ nixpkgs }: let for = system: import nixpkgs { inherit system; }; in (for 1).a": ["a"],
    "{ inputs }: inputs.nixpkgs.lib.x": ["lib.x"],
    "{ pkgs }: (pkgs.extend (final: prev: { })).a": ["a", "extend"],
    '{ pkgs }: pkgs."a".b': ["a.b"],
    "{ pkgs }: pkgs ? a.b": ["a.b"],
    "{ pkgs }: pkgs.a or pkgs.b": ["a", "b"],
    "{ pkgs }: pkgs.gb10.tool.version": [],
    "{ pkgs }: pkgs.gb10.python": ["python311"],
    "{ pkgs }: builtins.attrNames { }": [],
    "{ zlib, ... }@args: args": ["zlib"],
    "{ zlib }: zlib.dev": ["zlib.dev"],
    "{ config, pkgs, ... }: config.x pkgs.a": ["a"],
    "{ pkgs }: f: f { a = pkgs.a; }": ["a"],
}


@pytest.mark.parametrize("source", SEEN)
def test_sees_every_way_to_use_the_base(source: str, run: Run, write: Write) -> None:
    # The flake names the file only as a path here, so that what its arguments are is decided by their names.
    flake = FLAKE.replace("import ./nix/packages.nix { inherit pkgs; }", "./nix/packages.nix")
    result = run("contract.py", "--uses", write(tree(flake=flake, packages=source)))
    lines = [line for line in result.stdout.splitlines() if "nix/packages.nix" in line]
    assert [line.partition(":")[0] for line in lines] == SEEN[source], result.stdout + result.stderr


UNCLEAR = {
    "{ pkgs }: n: pkgs.${n}": "a computed name of the base",
    '{ pkgs }: n: pkgs."python${n}"': "a computed name of the base",
    "{ pkgs }: n: pkgs ? ${n}": "a computed name of the base",
    "{ pkgs }: with pkgs; [ a ]": "`with` over the base",
    "{ lib }: with lib; a": "`with` over the base",
    "{ lib }: with lib.types; a": "`with` over the base",
    '{ pkgs }: builtins.getAttr "a" pkgs': "the base is given to `builtins.getAttr`",
    "{ pkgs }: removeAttrs pkgs [ ]": "the base is given to `removeAttrs`",
    "{ pkgs }: f: f { p = pkgs; }": "the base gets the name `p`",
    "{ pkgs }: pkgs.callPackage (toString ./x.nix) { }": "callPackage of something that is no path",
    "{ pkgs }: args: import ./tool.nix args": "cannot see what gives nix/tool.nix its",
}


@pytest.mark.parametrize("source", UNCLEAR)
def test_refuses_what_it_cannot_follow(source: str, run: Run, write: Write) -> None:
    result = run("contract.py", write(tree(packages=source)))
    assert f"nix/packages.nix:1: {UNCLEAR[source]}" in result.stdout, result.stdout + result.stderr
    assert result.returncode == 1


def test_an_own_callpackage_offers_own_names(run: Run, write: Write) -> None:
    overlay = """\
final: prev: {
  gb10 = {
    wheels = 1;
    python = final.python311;
    call = final.newScope final.gb10;
    tool = final.gb10.callPackage ../nix/tool.nix { };
  };
}
"""
    tool = "{ wheels, python, zlib }: wheels python.version zlib\n"
    result = run("contract.py", "--uses", write(tree(overlay=overlay, tool=tool)))
    lines = [line for line in result.stdout.splitlines() if "nix/tool.nix" in line]
    assert lines == ["python311.version: nix/tool.nix:1", "zlib: nix/tool.nix:1"]


def test_arguments_of_a_call_are_followed(run: Run, write: Write) -> None:
    packages = "{ pkgs }: import ./tool.nix { py = pkgs.python3; inherit (pkgs) stdenv; n = 1; }\n"
    tool = "{ py, stdenv, n }: [ py.pkgs.pip stdenv.cc n.x ]\n"
    overlay = "final: prev: { gb10 = { }; }\n"
    result = run("contract.py", "--uses", write(tree(packages=packages, tool=tool, overlay=overlay)))
    lines = [line for line in result.stdout.splitlines() if "nix/tool.nix" in line]
    assert lines == ["python3.pkgs.pip: nix/tool.nix:1", "stdenv.cc: nix/tool.nix:1"]


def test_the_stand_in_itself_is_not_read(run: Run, write: Write) -> None:
    files = tree() | {"nix/debian/more.nix": "{ pkgs }: with pkgs; unlisted"}
    assert run("contract.py", write(files)).returncode == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (contract(*NAMES, "fetchurl"), "CONTRACT.md:12: `fetchurl` is listed twice"),
        (contract(*NAMES) + "| `zlib` | |\n", "CONTRACT.md:12: `zlib` has no reason"),
        (contract(*NAMES) + "| `a b` | why |\n", "CONTRACT.md:12: `a b` is not an attribute path"),
        ("# Contract\n", "CONTRACT.md: no rows of the form | `name` | why |"),
    ],
)
def test_a_bad_contract_fails(rows: str, message: str, run: Run, write: Write) -> None:
    result = run("contract.py", write(tree(contract=rows)))
    assert message in result.stdout.splitlines()
    assert result.returncode == 1


def test_bad_input_is_one_line(run: Run, write: Write, tmp_path: Path) -> None:
    missing = run("contract.py", tmp_path)
    assert missing.returncode == BAD_INPUT
    assert len(missing.stderr.splitlines()) == 1
    broken = run("contract.py", write(tree(tool="{ a }:")))
    assert broken.returncode == BAD_INPUT
    assert len(broken.stderr.splitlines()) == 1
    assert "nix/tool.nix:1: this does not parse as Nix" in broken.stderr
