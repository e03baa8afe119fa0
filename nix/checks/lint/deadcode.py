"""Report Nix code that nothing uses: `deadcode.py [FILE|DIR ...]`.

Found are: let bindings and `inherit`s of a let that nothing reachable uses (two bindings that only use each
other are both dead), pattern arguments and @-pattern names that the function never reads, `let in` without
bindings, and a `with` that no name needs. A pattern with an @-name is left alone as long as that name is
read. Names that start with `_` and plain arguments (`final: prev:`) are never reported.

Prints `file:line: message` for each finding. Exit 0: none. 1: findings. 2: a file that cannot be read or
parsed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nixtree import Binding, Kind, NixSyntaxError, Scopes, bindings_of, parse, walk

_REPORTED = {Kind.LET, Kind.LET_INHERIT, Kind.FORMAL, Kind.AT}


def nix_files(paths: Sequence[Path]) -> list[Path]:
    """Return the given files and every *.nix file below the given folders, sorted.

    Raises FileNotFoundError.
    """
    found: set[Path] = set()
    for path in paths:
        if path.is_dir():
            found.update(p for p in path.rglob("*.nix") if p.is_file())
        elif path.is_file():
            found.add(path)
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    return sorted(found)


def _live(scopes: Scopes) -> set[int]:
    """Return the ids of all bindings that live code reads; code is live when no dead let binding owns it."""
    uses: dict[int | None, list[Binding]] = {}
    for ref in scopes.references:
        if ref.target is not None:
            uses.setdefault(None if ref.owner is None else id(ref.owner), []).append(ref.target)
    live: set[int] = set()
    todo = list(uses.get(None, []))
    while todo:
        binding = todo.pop()
        if id(binding) not in live:
            live.add(id(binding))
            todo.extend(uses.get(id(binding), []))
    return live


def findings(path: Path) -> list[tuple[int, str]]:
    """Return (line, message) for each piece of dead code in one file. Raises NixSyntaxError, OSError."""
    root = parse(path)
    scopes = Scopes(root)
    live = _live(scopes)
    read_whole = {
        b.lambda_node.id
        for b in scopes.bindings
        if b.kind is Kind.AT and b.lambda_node is not None and id(b) in live
    }
    found: list[tuple[int, str]] = []
    for binding in scopes.bindings:
        if binding.kind not in _REPORTED or binding.name.startswith("_") or id(binding) in live:
            continue
        if binding.owner is not None and id(binding.owner) not in live:
            continue  # it goes away with the dead binding around it
        function = binding.lambda_node
        if binding.kind is Kind.FORMAL and function is not None and function.id in read_whole:
            continue
        found.append((binding.line, f"unused {binding.kind.value} `{binding.name}`"))
    found.extend(
        (node.start_point[0] + 1, "`let` without bindings")
        for node in walk(root)
        if node.type == "let_expression" and not bindings_of(node)
    )
    found.extend(
        (node.start_point[0] + 1, "`with` that no name needs") for node, needed in scopes.withs if not needed
    )
    return sorted(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    options = argparse.ArgumentParser(prog="deadcode.py", description="Report unused Nix code.")
    options.add_argument("paths", nargs="*", type=Path, default=[Path()], help="files or folders")
    paths = options.parse_args(argv).paths
    count = 0
    try:
        for path in nix_files(paths):
            for line, message in findings(path):
                print(f"{path}:{line}: {message}")
                count += 1
    except (NixSyntaxError, OSError) as error:
        print(f"deadcode: {error}", file=sys.stderr)
        return 2
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
