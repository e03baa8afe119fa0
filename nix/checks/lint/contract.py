"""Check that the flake uses of its base exactly what nix/CONTRACT.md lists: `contract.py [ROOT]`.

The base is what `pkgs`, `final`, `prev`, `lib` and the flake input `nixpkgs` stand for. All .nix files of
ROOT's flake.nix, overlays/ and nix/ are read, without nix/debian/ (the stand-in base itself). A use is the
longest attribute path that is written out: `pkgs.stdenv.cc.cc` is the use `stdenv.cc.cc`,
`nixpkgs.lib.genAttrs` is `lib.genAttrs`. Aliases (`inherit (pkgs) stdenv;`, `py = pkgs.python3;`) are
followed, as are the arguments of files that are called with `callPackage ./file.nix { … }` or
`import ./file.nix { … }`. Everything below `gb10` is the flake's own, unless an overlay puts something of
the base there: with `gb10.python = final.python311;`, `pkgs.gb10.python.pythonVersion` is the use
`python311.pythonVersion`.

What cannot be followed is an error, so that nothing escapes: a computed attribute of the base, `with` over
the base, the base given to a builtin, and the base under a name other than pkgs, final, prev, lib.

The contract is every table row of the form "| `name` | why |". `name.*` allows everything below `name`. A
reason that starts with "optional" says that the base may lack the name (used as `pkgs.x or …` or
`pkgs ? x`).

Errors: a use that is not listed; a listed name that nothing uses; a listed name that the stand-in base
lacks. For the last, `--offered FILE` gives the JSON list of names that an evaluation found in the base;
without it nix/debian/ must at least spell every part of the name as an attribute. `--names` prints the
non-optional names as JSON and checks nothing else; `--uses` prints what is used, with the places.

Exit 0: the contract holds. 1: it does not. 2: a file that cannot be read or parsed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nixtree import NixSyntaxError, parse, spelled
from uses import analyse

ROW = re.compile(r"^\|\s*`([^`]*)`\s*\|\s*(.*?)\s*\|\s*$")
NAME = re.compile(r"^[A-Za-z_][\w'-]*(\.[A-Za-z_][\w'-]*)*(\.\*)?$")


@dataclass(frozen=True)
class Entry:
    """One row of the contract."""

    name: str
    reason: str
    line: int

    @property
    def optional(self) -> bool:
        """Whether the base may lack the name."""
        return self.reason.lower().startswith("optional")

    def covers(self, use: str) -> bool:
        """Return whether this row allows `use`."""
        if self.name.endswith(".*"):
            return use.startswith(self.name[:-1]) or use == self.name[:-2]
        return use == self.name


def read_contract(path: Path) -> tuple[list[Entry], list[str]]:
    """Return the rows of the contract and what is wrong with them. Raises OSError."""
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = ROW.match(line)
        if row is None:
            continue
        name, reason = row.groups()
        if not NAME.match(name):
            problems.append(f"{path.name}:{number}: `{name}` is not an attribute path")
        elif name in entries:
            problems.append(f"{path.name}:{number}: `{name}` is listed twice")
        elif not reason:
            problems.append(f"{path.name}:{number}: `{name}` has no reason")
        else:
            entries[name] = Entry(name, reason, number)
    if not entries:
        problems.append(f"{path.name}: no rows of the form | `name` | why |")
    return list(entries.values()), problems


def spelled_names(folder: Path) -> set[str]:
    """Return every attribute name that the Nix files below `folder` bind or inherit."""
    return {name for path in sorted(folder.rglob("*.nix")) for name in spelled(parse(path))}


def base_names(entries: Iterable[Entry]) -> list[str]:
    """Return the names that every base must offer: no optional ones, `name.*` as `name`."""
    return sorted({entry.name.removesuffix(".*") for entry in entries if not entry.optional})


def check(root: Path, offered: Path | None) -> list[str]:
    """Return every way in which the flake below `root` breaks its contract."""
    contract = root / "nix" / "CONTRACT.md"
    entries, problems = read_contract(contract)
    report = analyse(root)
    problems += sorted(report.unclear)
    for use, places in sorted(report.uses.items()):
        if not any(entry.covers(use) for entry in entries):
            shown = sorted(places)
            more = f" and {len(shown) - 1} more" if len(shown) > 1 else ""
            problems.append(f"{shown[0]}{more}: uses `{use}`, which {contract.name} does not list")
    for entry in entries:
        if not any(entry.covers(use) for use in report.uses):
            problems.append(f"{contract.name}:{entry.line}: lists `{entry.name}`, which nothing uses")
    if offered is not None:
        names = set(json.loads(offered.read_text(encoding="utf-8")))
        missing = [name for name in base_names(entries) if name not in names]
    else:
        names = spelled_names(root / "nix" / "debian")
        missing = [name for name in base_names(entries) if not names.issuperset(name.split("."))]
    problems += [f"nix/debian lacks `{name}`, which {contract.name} lists" for name in missing]
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    options = argparse.ArgumentParser(prog="contract.py", description="Check CONTRACT.md")
    options.add_argument(
        "root", nargs="?", type=Path, default=Path(), help="folder of flake.nix (default: .)"
    )
    options.add_argument("--offered", type=Path, help="JSON list of the names that the stand-in base has")
    options.add_argument("--names", action="store_true", help="print the names every base must have, as JSON")
    options.add_argument("--uses", action="store_true", help="print what is used and where")
    given = options.parse_args(argv)
    try:
        if given.names:
            print(json.dumps(base_names(read_contract(given.root / "nix" / "CONTRACT.md")[0])))
            return 0
        if given.uses:
            for use, places in sorted(analyse(given.root).uses.items()):
                print(f"{use}: {', '.join(sorted(places))}")
            return 0
        problems = check(given.root, given.offered)
    except (NixSyntaxError, OSError, json.JSONDecodeError) as error:
        print(f"contract: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
