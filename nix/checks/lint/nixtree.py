"""Parse Nix files and resolve their names: the ground that the lint tools stand on.

The parser is tree-sitter-nix. `Scopes` walks one file once and answers two questions: which binding does a
variable mean, and which code does a binding's value belong to. Nix scoping is lexical: a name that a `let`,
`rec` or function binds always wins over a surrounding `with`, so `with` can only explain names that nothing
else binds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import tree_sitter_nix
from tree_sitter import Language, Node, Parser

__all__ = [
    "Binding",
    "Kind",
    "NixSyntaxError",
    "Node",
    "Reference",
    "Scopes",
    "bindings_of",
    "inherited",
    "parse",
    "path_names",
    "spelled",
    "static_name",
    "text",
    "walk",
]

_PARSER = Parser(Language(tree_sitter_nix.language()))

# The grammar of tree-sitter-nix 0.1.0 lacks the comma before the brace that ends a pattern, `{ a, b, }: …`.
# A blank in its place keeps every position. Commas mean nothing elsewhere in Nix, so at most the words of a
# string or a comment change, which no tool here reads. Can go when the grammar on PyPI parses such a pattern.
_LAST_COMMA = re.compile(rb",(?=(?:\s|#[^\n]*\n|/\*.*?\*/)*\}\s*[:@])", re.DOTALL)


class NixSyntaxError(Exception):
    """A file that does not parse; the text is `file:line: message`."""


class Kind(Enum):
    """Where a binding comes from."""

    LET = "let binding"
    LET_INHERIT = "inherited let binding"
    REC = "rec attribute"
    FORMAL = "pattern argument"
    AT = "@-pattern name"
    ARGUMENT = "argument"


@dataclass(eq=False)
class Binding:
    """One name in one scope.

    `value` is the bound expression (None for arguments and for `inherit`); `source` is the set of an
    `inherit (source) name;`; `outer` is what a plain `inherit name;` refers to; `owner` is the let binding
    whose value this binding stands in.
    """

    name: str
    kind: Kind
    node: Node
    owner: Binding | None
    value: Node | None = None
    source: Node | None = None
    outer: Binding | None = None
    lambda_node: Node | None = None

    @property
    def line(self) -> int:
        """1-based line of the name."""
        return self.node.start_point[0] + 1


@dataclass(eq=False)
class Scope:
    """The names one construct binds, on top of `parent`."""

    parent: Scope | None
    names: dict[str, Binding] = field(default_factory=dict)

    def find(self, name: str) -> Binding | None:
        """Return the innermost binding of `name`, or None when only a `with` or a builtin can explain it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        return None


@dataclass(frozen=True)
class Reference:
    """A use of a name: `target` is None when nothing in the file binds it."""

    node: Node
    name: str
    target: Binding | None
    owner: Binding | None


def parse(path: Path) -> Node:
    """Return the root node of a Nix file. Raises NixSyntaxError with the first bad line."""
    root = _PARSER.parse(_LAST_COMMA.sub(b" ", path.read_bytes())).root_node
    if root.has_error:
        bad = next(node for node in walk(root) if node.is_error or node.is_missing)
        raise NixSyntaxError(f"{path}:{bad.start_point[0] + 1}: this does not parse as Nix")
    return root


def walk(node: Node) -> Iterator[Node]:
    """Yield `node` and everything below it, parents first."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        stack.extend(reversed(current.children))


def text(node: Node) -> str:
    """Return the source text of a node."""
    return (node.text or b"").decode()


def static_name(attr: Node) -> str | None:
    """Return the attribute name that `attr` spells, or None when it is computed (`${x}`, `"a${x}"`)."""
    if attr.type == "identifier":
        return text(attr)
    if attr.type == "string_expression" and all(c.type == "string_fragment" for c in attr.named_children):
        return "".join(text(c) for c in attr.named_children)
    return None


def path_names(attrpath: Node) -> list[str | None]:
    """Return the names of an attribute path, None for each computed one."""
    return [static_name(attr) for attr in attrpath.children_by_field_name("attr")]


def inherited(node: Node) -> list[Node]:
    """Return the name nodes of an `inherit` or `inherit_from` node."""
    attrs = node.child_by_field_name("attrs")
    return [] if attrs is None else attrs.children_by_field_name("attr")


def bindings_of(node: Node) -> list[Node]:
    """Return the binding, inherit and inherit_from nodes of a let or an attribute set."""
    return [
        child
        for group in node.named_children
        if group.type == "binding_set"
        for child in group.children_by_field_name("binding")
    ]


def spelled(root: Node) -> set[str]:
    """Return every attribute name that the code at and below `root` binds or inherits."""
    names: set[str | None] = set()
    for node in walk(root):
        if node.type == "binding":
            attrpath = node.child_by_field_name("attrpath")
            names.update([] if attrpath is None else path_names(attrpath))
        elif node.type in {"inherit", "inherit_from"}:
            names.update(map(static_name, inherited(node)))
    return {name for name in names if name is not None}


class Scopes:
    """All bindings and references of one file.

    `references` holds every use in source order; `by_node` maps the id of a variable's node to it. `withs`
    lists each `with` and whether a name below it needs it.
    """

    def __init__(self, root: Node) -> None:
        self.bindings: list[Binding] = []
        self.references: list[Reference] = []
        self.by_node: dict[int, Reference] = {}
        self.withs: list[tuple[Node, bool]] = []
        self.lambda_formals: dict[int, dict[str, Binding]] = {}
        self._visit(root, Scope(None), None)

    def _refer(self, node: Node, name: str, scope: Scope, owner: Binding | None) -> Reference:
        reference = Reference(node, name, scope.find(name), owner)
        self.references.append(reference)
        self.by_node[node.id] = reference
        return reference

    def _bind(self, scope: Scope, binding: Binding) -> Binding:
        """Add a binding; `a.b = 1; a.c = 2;` binds `a` once."""
        if binding.name not in scope.names:
            scope.names[binding.name] = binding
            self.bindings.append(binding)
        return scope.names[binding.name]

    def _visit(self, node: Node, scope: Scope, owner: Binding | None) -> None:
        match node.type:
            case "variable_expression":
                name = node.child_by_field_name("name")
                if name is not None:
                    self._refer(node, text(name), scope, owner)
            case "let_expression" | "rec_attrset_expression" | "let_attrset_expression":
                self._visit_recursive(node, scope, owner)
            case "attrset_expression":
                self._visit_set(node, scope, owner)
            case "function_expression":
                self._visit_function(node, scope, owner)
            case "with_expression":
                before = len(self.references)
                body = node.child_by_field_name("body")
                environment = node.child_by_field_name("environment")
                if body is not None:
                    self._visit(body, scope, owner)
                needed = any(ref.target is None for ref in self.references[before:])
                self.withs.append((node, needed))
                if environment is not None:
                    self._visit(environment, scope, owner)
            case _:
                for child in node.named_children:
                    self._visit(child, scope, owner)

    def _visit_recursive(self, node: Node, scope: Scope, owner: Binding | None) -> None:
        inner = Scope(scope)
        is_let = node.type == "let_expression"
        plain, taken = (Kind.LET, Kind.LET_INHERIT) if is_let else (Kind.REC, Kind.REC)
        values: list[tuple[Node, Binding | None]] = []
        for child in bindings_of(node):
            if child.type == "binding":
                attrpath = child.child_by_field_name("attrpath")
                value = child.child_by_field_name("expression")
                if attrpath is None or value is None:
                    continue
                names = path_names(attrpath)
                target: Binding | None = None
                if names[0] is not None:
                    whole = value if len(names) == 1 else None
                    first = attrpath.children_by_field_name("attr")[0]
                    target = self._bind(inner, Binding(names[0], plain, first, owner, value=whole))
                values.append((attrpath, target))
                values.append((value, target))
                continue
            source = child.child_by_field_name("expression")
            for attr in inherited(child):
                name = static_name(attr)
                if name is None:
                    continue
                made = self._bind(inner, Binding(name, taken, attr, owner, source=source))
                if source is None:
                    made.outer = self._refer(attr, name, scope, made if is_let else owner).target
            if source is not None:
                # The set of an `inherit (set) a b;` is used by a and b: it has no owner of its own.
                values.append((source, owner))
        for expression, target in values:
            self._visit(expression, inner, target if is_let and target is not None else owner)
        body = node.child_by_field_name("body")
        if body is not None:
            self._visit(body, inner, owner)

    def _visit_set(self, node: Node, scope: Scope, owner: Binding | None) -> None:
        for child in bindings_of(node):
            if child.type == "inherit":
                for attr in inherited(child):
                    name = static_name(attr)
                    if name is not None:
                        self._refer(attr, name, scope, owner)
                continue
            for part in child.named_children:
                if part.type != "inherited_attrs":
                    self._visit(part, scope, owner)

    def _visit_function(self, node: Node, scope: Scope, owner: Binding | None) -> None:
        inner = Scope(scope)
        formals = node.child_by_field_name("formals")
        universal = node.child_by_field_name("universal")
        defaults: list[Node] = []
        named: dict[str, Binding] = {}
        for formal in formals.named_children if formals is not None else []:
            name = formal.child_by_field_name("name")
            if name is None:
                continue
            default = formal.child_by_field_name("default")
            binding = Binding(text(name), Kind.FORMAL, name, owner, lambda_node=node)
            named[binding.name] = self._bind(inner, binding)
            if default is not None:
                defaults.append(default)
        if universal is not None:
            kind = Kind.ARGUMENT if formals is None else Kind.AT
            self._bind(inner, Binding(text(universal), kind, universal, owner, lambda_node=node))
        self.lambda_formals[node.id] = named
        body = node.child_by_field_name("body")
        for part in [*defaults, *([] if body is None else [body])]:
            self._visit(part, inner, owner)
