"""Check the layout of Nix files where nixfmt itself cannot be had: `layout.py [FILE|DIR ...]`.

The rules are ones that nixfmt's output (RFC 166) always keeps, so a file that nixfmt wrote never fails here.
The reverse does not hold: nixfmt decides more, above all where a line breaks. Checked are: the blanks between
two tokens of one line, indentation, blank lines, line ends, and for a set, list, pattern or `let` that spans
lines that its two ends and each of its items have lines of their own. A file that switches nixfmt off in a
comment (`nixfmt:disable`) is beyond this tool.

Prints `file:line: message` for each finding.
Exit 0: none. 1: findings. 2: a file that cannot be read or parsed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from deadcode import nix_files
from nixtree import NixSyntaxError, Node, bindings_of, parse

STEP = 2
LINES_APART = 2
# Read as one token: their inside is text, and nixfmt's rules for it are others.
ATOMS = {
    "string_expression",
    "indented_string_expression",
    "path_expression",
    "hpath_expression",
    "spath_expression",
    "uri_expression",
    "interpolation",
    "comment",
}
TIGHT_BEFORE = {";", ",", ")", ":", ".", "@"}
TIGHT_AFTER = {"(", ".", "@"}
ENDS = {"{", "}", "[", "]", "let", "in"}
SETS = {"attrset_expression", "rec_attrset_expression"}

Finding = tuple[int, str]


def tokens(node: Node) -> Iterator[Node]:
    """Yield the tokens below `node` in source order; strings, paths and comments are one token each."""
    if node.type in ATOMS or not node.children:
        if node.end_byte > node.start_byte:
            yield node
        return
    for child in node.children:
        yield from tokens(child)


def outside_atoms(node: Node) -> Iterator[Node]:
    """Yield `node` and what is below it, without the inside of strings, paths and comments."""
    if node.type not in ATOMS:
        yield node
        for child in node.children:
            yield from outside_atoms(child)


def row(node: Node) -> int:
    """0-based line on which a node starts."""
    return node.start_point[0]


def wanted_blanks(left: Node, right: Node) -> int:
    """Return how many blanks nixfmt puts between two tokens that stay on one line."""
    unary = left.parent is not None and left.parent.type == "unary_expression" and not left.is_named
    if left.type == "integer_expression" and right.type == ".":
        return 1  # `1 .a`: without the blank it would be a float
    return 0 if unary or right.type in TIGHT_BEFORE or left.type in TIGHT_AFTER else 1


def spacing(found: list[Node], content: bytes) -> Iterator[Finding]:
    """Yield wrong blanks between tokens and wrong numbers of blank lines."""
    for left, right in pairwise(found):
        distance = row(right) - left.end_point[0]
        if distance == 0:
            # The comma that ends a pattern is no token of the parser's: it lies in the gap.
            gap = content[left.end_byte : right.start_byte].removeprefix(b",")
            wanted = wanted_blanks(left, right)
            if gap != b" " * wanted and not (right.type == "comment" and gap == b"  "):
                words = "a single blank" if wanted else "no blank"
                yield row(right) + 1, f"want {words} before `{head(right)}`"
        elif distance > LINES_APART:
            yield row(right) + 1, "more than one blank line"


def head(node: Node) -> str:
    """Return the first line of a token, shortened."""
    return (node.text or b"").decode().splitlines()[0][:20]


class Lines:
    """Which token starts and which ends each line.

    A line that a string or comment reaches into starts with that string or comment.
    """

    def __init__(self, found: list[Node]) -> None:
        self.tokens = found
        self.first: dict[int, Node] = {}
        self.last: dict[int, Node] = {}
        for token in found:
            self.first.setdefault(row(token), token)
            self.first.setdefault(token.end_point[0], token)
            if token.type != "comment":
                self.last[token.end_point[0]] = token

    def indent(self, number: int) -> int | None:
        """Return the indentation of a line, or None when a string or comment reaches into it."""
        token = self.first[number]
        return token.start_point[1] if row(token) == number else None

    def starts(self, node: Node) -> bool:
        """Return whether `node` begins its line, or follows a comment that does: `/* bash */ ''…''`."""
        first = self.first[row(node)]
        if first.type == "comment" and first.end_point[0] == row(node):
            between = (token for token in self.tokens if first.end_byte <= token.start_byte < node.start_byte)
            return next(between, None) is None
        return first.start_byte == node.start_byte

    def ends(self, node: Node) -> bool:
        """Return whether nothing but a comment follows `node` on its line."""
        return self.last[node.end_point[0]].end_byte == node.end_byte

    def indentation(self) -> Iterator[Finding]:
        """Yield lines that are not indented by whole steps, or by more than one step at a time."""
        previous = 0
        for number in sorted(self.first):
            indent = self.indent(number)
            if indent is None:
                continue
            if indent % STEP:
                yield number + 1, f"indented by {indent}, which is no multiple of {STEP}"
            elif indent > previous + STEP:
                yield number + 1, f"indented by {indent} after a line indented by {previous}"
            previous = indent


def items_of(node: Node) -> list[Node]:
    """Return what a bracket holds: bindings, elements or arguments."""
    if node.type in SETS or node.type == "let_expression":
        return bindings_of(node)
    return [child for child in node.named_children if child.type != "comment"]


def spread(node: Node, content: bytes, lines: Lines) -> Iterator[Finding]:
    """Yield what is wrong with one bracket that spans lines."""
    opening, closing = ends_of(node)
    indent = lines.indent(row(opening))
    if not lines.ends(opening):
        yield row(opening) + 1, f"want a new line after `{opening.type}`"
    if not lines.starts(closing):
        yield row(closing) + 1, f"want `{closing.type}` on a line of its own"
    elif indent is not None and closing.start_point[1] != indent:
        yield row(closing) + 1, f"want `{closing.type}` indented by {indent}, like the line that opens it"
    items = items_of(node)
    for item in items:
        if not lines.starts(item):
            yield row(item) + 1, f"want `{head(item)}` on a line of its own"
        elif indent is not None and lines.indent(row(item)) != indent + STEP:
            yield row(item) + 1, f"want `{head(item)}` indented by {indent + STEP}"
    if node.type == "formals" and items and items[-1].type != "ellipses":
        rest = content[items[-1].end_byte : closing.start_byte].lstrip()
        if not rest.startswith(b","):
            yield row(items[-1]) + 1, f"want a comma after `{head(items[-1])}`, the last of a pattern"


def ends_of(node: Node) -> tuple[Node, Node]:
    """Return the opening and the closing token of a bracket or `let`."""
    found = [child for child in node.children if child.type in ENDS]
    return found[0], found[-1]


def brackets(root: Node, content: bytes, lines: Lines) -> Iterator[Finding]:
    """Yield what is wrong with the sets, lists, patterns and lets of a file."""
    for node in outside_atoms(root):
        if node.type not in SETS | {"list_expression", "formals", "let_expression"}:
            continue
        opening, closing = ends_of(node)
        if node.type == "let_expression" or row(opening) != row(closing):
            yield from spread(node, content, lines)
        elif node.type in SETS and len(items_of(node)) > 1:
            yield row(opening) + 1, "want one line for each binding of a set that has more than one"


def findings(path: Path) -> list[Finding]:
    """Return (line, message) for each broken rule of one file. Raises NixSyntaxError, OSError."""
    root = parse(path)
    content = path.read_bytes()
    found = list(tokens(root))
    lines = Lines(found)
    result = [*spacing(found, content), *lines.indentation(), *brackets(root, content, lines)]
    inside = {n for t in found for n in range(row(t), t.end_point[0])}
    for number, line in enumerate(content.split(b"\n")):
        if number not in inside and line != line.rstrip():
            result.append((number + 1, "blanks at the end of the line"))
    if content.startswith((b"\n", b" ", b"\t")) or content.endswith(b"\n\n") or not content.endswith(b"\n"):
        result.append((1, "the file must start with code and end with one line end"))
    return sorted(set(result))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    options = argparse.ArgumentParser(prog="layout.py", description="Check the layout of Nix files.")
    options.add_argument("paths", nargs="*", type=Path, default=[Path()], help="files or folders")
    paths = options.parse_args(argv).paths
    count = 0
    try:
        for path in nix_files(paths):
            for line, message in findings(path):
                print(f"{path}:{line}: {message}")
                count += 1
    except (NixSyntaxError, OSError) as error:
        print(f"layout: {error}", file=sys.stderr)
        return 2
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
