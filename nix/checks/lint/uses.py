"""Find what the flake's Nix files use of their base, and everything about it that cannot be followed.

An expression stands for a set of base paths: `pkgs` is the empty path, `pkgs.stdenv.cc` is (stdenv, cc).
`Analysis` works these out for one file and records each use; `analyse` does so for the whole flake, until
what each file gives the files it calls is settled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nixtree import (
    Binding,
    Kind,
    Node,
    Scopes,
    bindings_of,
    inherited,
    parse,
    path_names,
    spelled,
    static_name,
    walk,
)
from nixtree import text as source_text

BasePath = tuple[str, ...]
Paths = frozenset[BasePath]

NOTHING: Paths = frozenset()
PKGS: Paths = frozenset({()})
LIB: Paths = frozenset({("lib",)})
# The flake input itself and its `legacyPackages`; "<" cannot occur in an attribute name that code spells out.
NIXPKGS: BasePath = ("<nixpkgs>",)
LEGACY: BasePath = ("<nixpkgs>", "legacyPackages")
# The flake's own set. What it holds can still be the base's: `gb10.python = final.python311;`.
OWN_SET: BasePath = ("<gb10>",)
WHOLE = (PKGS, LIB)
BY_NAME: dict[str, Paths] = {
    "pkgs": PKGS,
    "final": PKGS,
    "prev": PKGS,
    "lib": LIB,
    "nixpkgs": frozenset({NIXPKGS}),
}
OWN = "gb10"
# The parts of an expression whose value it can have. Of the operators only `//` can give the base on.
PASSED_ON = {
    "parenthesized_expression": ("expression",),
    "let_expression": ("body",),
    "with_expression": ("body",),
    "assert_expression": ("body",),
    "if_expression": ("consequence", "alternative"),
    "binary_expression": ("left", "right"),
}
SCOPING = {("newScope",), ("lib", "callPackageWith")}
EXTENDING = {("extend",), ("appendOverlays",)}


@dataclass
class Report:
    """Uses (name -> places) and everything that could not be followed."""

    uses: dict[str, set[str]] = field(default_factory=dict)
    unclear: set[str] = field(default_factory=set)


@dataclass
class Call:
    """A call of a file: its explicit arguments, and who fills in the rest."""

    arguments: dict[str, Paths]
    filled: Paths
    fills: bool


# A file that no call names: its arguments are the base's, or the flake's own.
UNKNOWN_CALL = Call({}, NOTHING, fills=True)


class File:
    """One Nix file: its tree, its scopes and, once its callers are known, what its arguments stand for."""

    def __init__(self, path: Path, shown: str) -> None:
        self.path = path
        self.shown = shown
        self.root = parse(path)
        self.scopes = Scopes(self.root)
        self.calls: list[Call] = []
        top = self.root.child_by_field_name("expression")
        self.function = top if top is not None and top.type == "function_expression" else None
        formals = {} if self.function is None else self.scopes.lambda_formals[self.function.id]
        self.formals: dict[str, Binding] = formals
        # A NixOS module gets its arguments from the module system, not from callPackage.
        self.is_module = bool({"config", "options"} & formals.keys())


def step(paths: Paths, name: str | None, held: Mapping[str, Paths]) -> Paths:
    """Return what the attribute `name` of `paths` is.

    A computed name is None. `held` is what of the base `gb10` holds, by attribute.
    """
    result: set[BasePath] = set()
    for path in paths:
        if path == NIXPKGS:
            result |= {"lib": LIB, "legacyPackages": frozenset({LEGACY})}.get(name or "", NOTHING)
        elif path == OWN_SET:
            result |= held.get(name or "", NOTHING)
        elif path == LEGACY or (path, name) == ((), "pkgs"):
            result.add(())
        elif (path, name) == ((), OWN):
            result.add(OWN_SET)
        elif name is not None:
            result.add((*path, name))
    return frozenset(result)


class Analysis:
    """The base uses of one file, given what its arguments stand for."""

    def __init__(self, file: File, held: dict[str, Paths], report: Report, files: dict[Path, File]) -> None:
        self.file = file
        self.held = held
        self.report = report
        self.files = files
        self.made_calls: list[tuple[File, Call]] = []
        self._cache: dict[int, Paths] = {}
        self._open: set[int] = set()

    def run(self) -> None:
        """Record all uses, unclear places and calls of other files."""
        self._scan(self.file.root, alias=False)

    def _step(self, paths: Paths, name: str | None) -> Paths:
        return step(paths, name, self.held)

    def paths(self, node: Node | None) -> Paths:
        """Return the base paths that the value of `node` can be; empty for anything else."""
        if node is None or node.id in self._open:
            return NOTHING
        if node.id not in self._cache:
            self._open.add(node.id)
            self._cache[node.id] = self._paths(node)
            self._open.discard(node.id)
        return self._cache[node.id]

    def _paths(self, node: Node) -> Paths:
        child = node.child_by_field_name
        match node.type:
            case "variable_expression":
                return self.binding_paths(self.file.scopes.by_node[node.id].target)
            case "select_expression":
                return self.selected(node) | self.paths(child("default"))
            case "apply_expression":
                return self._applied(node)
        # What is left has the value of one of its parts, or none that can be of the base.
        parts = (child(part) for part in PASSED_ON.get(node.type, ()))
        return frozenset().union(*map(self.paths, parts))

    def selected(self, node: Node) -> Paths:
        """Return the paths of a select expression, leaving its `or` default out."""
        expression, attrpath = node.child_by_field_name("expression"), node.child_by_field_name("attrpath")
        if expression is None or attrpath is None:
            return NOTHING
        names = path_names(attrpath)
        paths = self.paths(expression)
        if source_text(expression) == "inputs" and names[0] == "nixpkgs":
            paths, names = frozenset({NIXPKGS}), names[1:]
        for name in names:
            paths = self._step(paths, name)
        return paths

    def binding_paths(self, binding: Binding | None) -> Paths:
        """Return what a name stands for: its value, else what its callers give, else what its name means."""
        if binding is None:
            return NOTHING
        found = NOTHING
        if binding.value is not None:
            found = self.paths(binding.value)
        elif binding.source is not None:
            found = self._step(self.paths(binding.source), binding.name)
        elif binding.outer is not None:
            found = self.binding_paths(binding.outer)
        elif self.file.formals.get(binding.name) is binding:
            found = self._formal_paths(binding)
        if found or binding.kind is Kind.REC:
            return found
        return BY_NAME.get(binding.name, NOTHING)

    def _formal_paths(self, formal: Binding) -> Paths:
        """Return what a top-level pattern argument of this file stands for, over all calls of the file."""
        file = self.file
        if file.is_module or formal.name in BY_NAME or file.path.name == "flake.nix":
            return NOTHING
        result: set[BasePath] = set()
        for call in file.calls or [UNKNOWN_CALL]:
            if formal.name in call.arguments:
                result |= call.arguments[formal.name]
            elif call.fills and formal.name == OWN:
                result.add(OWN_SET)
            elif call.fills and not call.filled and formal.name in self.held:
                result |= self.held[formal.name]
            elif call.fills:
                result.add((formal.name,))
        return frozenset(result)

    def _applied(self, node: Node) -> Paths:
        function = node.child_by_field_name("function")
        head, count = function, 1
        while head is not None and head.type in {"apply_expression", "parenthesized_expression"}:
            count += head.type == "apply_expression"
            name = "function" if head.type == "apply_expression" else "expression"
            head = head.child_by_field_name(name)
        if head is None:
            return NOTHING
        if source_text(head) in {"import", "builtins.import"}:
            return PKGS if self._imports_nixpkgs(node) else NOTHING
        if self.paths(head) & EXTENDING:
            return PKGS
        for _ in range(count):
            head = self._lambda_body(head)
        return self.paths(head)

    def _lambda_body(self, node: Node | None) -> Node | None:
        """Return the body of the function that `node` names or is, or None."""
        for _ in range(20):
            if node is None or node.type == "function_expression":
                break
            if node.type == "variable_expression":
                target = self.file.scopes.by_node[node.id].target
                node = None if target is None else target.value
            elif node.type == "parenthesized_expression":
                node = node.child_by_field_name("expression")
            else:
                return None
        return None if node is None else node.child_by_field_name("body")

    def _imports_nixpkgs(self, node: Node) -> bool:
        """Return whether this is `import nixpkgs { … }`."""
        function = node.child_by_field_name("function")
        if function is None or function.type != "apply_expression":
            return False
        return NIXPKGS in self.paths(function.child_by_field_name("argument"))

    def _place(self, node: Node) -> str:
        return f"{self.file.shown}:{node.start_point[0] + 1}"

    def _use(self, node: Node, paths: Iterable[BasePath]) -> None:
        for path in paths:
            if path and path != ("lib",) and not path[0].startswith("<"):
                self.report.uses.setdefault(".".join(path), set()).add(self._place(node))

    def _unclear(self, node: Node, message: str) -> None:
        self.report.unclear.add(f"{self._place(node)}: {message}")

    def _scan(self, node: Node, *, alias: bool) -> None:
        """Record the uses at and below `node`; the value of an alias counts where the alias is used."""
        match node.type:
            case "variable_expression":
                if not alias:
                    self._use(node, self.paths(node))
            case "select_expression":
                self._scan_select(node, alias=alias)
            case "has_attr_expression":
                self._scan_has_attr(node)
            case "let_expression" | "rec_attrset_expression" | "attrset_expression":
                self._scan_set(node)
                body = node.child_by_field_name("body")
                if body is not None:
                    self._scan(body, alias=alias)
            case "function_expression":
                self._scan_function(node)
            case "apply_expression":
                self._scan_apply(node)
            case "if_expression" | "parenthesized_expression":
                condition = node.child_by_field_name("condition")
                for part in node.named_children:
                    self._scan(part, alias=alias and part != condition)
            case _:
                if self.paths(node.child_by_field_name("environment")):
                    self._unclear(node, "`with` over the base hides what is used: write `inherit (…) names;`")
                self._scan_children(node)

    def _scan_children(self, node: Node) -> None:
        for part in node.named_children:
            self._scan(part, alias=False)

    def _scan_select(self, node: Node, *, alias: bool) -> None:
        expression, attrpath = node.child_by_field_name("expression"), node.child_by_field_name("attrpath")
        if expression is None or attrpath is None:
            return
        if not alias:
            self._use(node, self.selected(node))
        base = self.paths(expression)
        for name in path_names(attrpath):
            if name is None and base - {LEGACY, NIXPKGS, OWN_SET}:
                self._unclear(node, f"a computed name of the base (`{source_text(node)}`): spell it out")
            base = self._step(base, name)
        # The set that is selected from is part of this use, so it is no use of its own.
        self._scan(expression, alias=bool(self.paths(expression)))
        self._scan(attrpath, alias=False)
        default = node.child_by_field_name("default")
        if default is not None:
            self._scan(default, alias=alias)

    def _scan_has_attr(self, node: Node) -> None:
        expression, attrpath = node.child_by_field_name("expression"), node.child_by_field_name("attrpath")
        if expression is None or attrpath is None:
            return
        paths = self.paths(expression)
        for name in path_names(attrpath):
            if name is None and paths - {OWN_SET}:
                self._unclear(node, f"a computed name of the base (`{source_text(node)}`): spell it out")
            paths = self._step(paths, name)
        self._use(node, paths)
        self._scan(expression, alias=bool(self.paths(expression)))
        self._scan(attrpath, alias=False)

    def _scan_set(self, node: Node) -> None:
        is_let = node.type == "let_expression"
        for item in bindings_of(node):
            source = item.child_by_field_name("expression")
            if item.type == "binding":
                attrpath = item.child_by_field_name("attrpath")
                if attrpath is None or source is None:
                    continue
                names = path_names(attrpath)
                self._scan(attrpath, alias=False)
                # A let name that is an alias counts where it is used; an attribute of a set counts here.
                self._scan(source, alias=is_let and len(names) == 1)
                if not is_let:
                    self._check_name(item, names[-1], self.paths(source))
            elif source is not None:
                self._scan(source, alias=bool(self.paths(source)))
                for attr in inherited(item):
                    name = static_name(attr)
                    if not is_let:
                        self._use(attr, self._step(self.paths(source), name))
            elif not is_let:
                for attr in inherited(item):
                    reference = self.file.scopes.by_node.get(attr.id)
                    if reference is not None:
                        self._use(attr, self.binding_paths(reference.target))

    def _check_name(self, node: Node, name: str | None, paths: Paths) -> None:
        for whole in WHOLE:
            if paths == whole and (name is None or BY_NAME.get(name) != whole) and not self._is_output(node):
                self._unclear(node, f"the base gets the name `{name}`: call it pkgs, final, prev or lib")

    def _is_output(self, node: Node) -> bool:
        """Return whether a binding is the `legacyPackages` output or below it: given away, not used."""
        current: Node | None = node
        while current is not None:
            attrpath = current.child_by_field_name("attrpath") if current.type == "binding" else None
            if attrpath is not None and path_names(attrpath)[0] == "legacyPackages":
                return True
            current = current.parent
        return False

    def _scan_function(self, node: Node) -> None:
        formals, universal = node.child_by_field_name("formals"), node.child_by_field_name("universal")
        if formals is not None and universal is not None:
            # The @-name can read every argument, so every argument counts as used.
            for binding in self.file.scopes.lambda_formals[node.id].values():
                self._use(binding.node, self.binding_paths(binding))
        for formal in formals.named_children if formals is not None else []:
            default = formal.child_by_field_name("default")
            if default is not None:
                self._scan(default, alias=False)
        body = node.child_by_field_name("body")
        if body is not None:
            self._scan(body, alias=False)

    def _scan_apply(self, node: Node) -> None:
        function, argument = node.child_by_field_name("function"), node.child_by_field_name("argument")
        if function is None or argument is None:
            return
        self._scan(function, alias=False)
        if self.paths(argument) in WHOLE:
            head = function
            while head.type == "apply_expression":
                head = head.child_by_field_name("function") or head
            target = self.file.scopes.by_node.get(head.id)
            bare_builtin = head.type == "variable_expression" and target is not None and target.target is None
            if source_text(head).startswith("builtins.") or (bare_builtin and source_text(head) != "import"):
                self._unclear(node, f"the base is given to `{source_text(head)}`: name what is used")
        self._scan(argument, alias=False)
        self._note_call(node)

    def _note_call(self, node: Node) -> None:
        """Record `callPackage ./file.nix { … }` and `import ./file.nix { … }`."""
        function, argument = node.child_by_field_name("function"), node.child_by_field_name("argument")
        if function is None or argument is None or function.type != "apply_expression":
            return
        head, target = function.child_by_field_name("function"), function.child_by_field_name("argument")
        if head is None or target is None:
            return
        is_import = source_text(head) in {"import", "builtins.import"}
        if not is_import and not self._is_call_package(head):
            return
        if target.type != "path_expression":
            if not is_import:
                self._unclear(node, "callPackage of something that is no path: write ./file.nix")
            return
        callee = self._file_at(target)
        if callee is None:
            return
        arguments, complete = self.arguments(argument)
        unknown = callee.formals.keys() - arguments.keys() - BY_NAME.keys()
        if not complete and unknown:
            names = ", ".join(sorted(unknown))
            self._unclear(node, f"cannot see what gives {callee.shown} its {names}: write it here")
        filled = NOTHING if is_import else self.paths(head)
        self.made_calls.append((callee, Call(arguments, filled, fills=not is_import)))

    def _is_call_package(self, head: Node) -> bool:
        """Return whether `head` is a `callPackage`, or a name for `newScope x` or `lib.callPackageWith x`."""
        if source_text(head).rsplit(".", 1)[-1] == "callPackage":
            return True
        if head.type == "variable_expression":
            target = self.file.scopes.by_node[head.id].target
            value = None if target is None else target.value
            if value is not None and value.type == "apply_expression":
                return bool(self.paths(value.child_by_field_name("function")) & SCOPING)
        return False

    def _file_at(self, node: Node) -> File | None:
        path = (self.file.path.parent / source_text(node)).resolve()
        return self.files.get(path / "default.nix" if path.is_dir() else path)

    def arguments(self, node: Node | None) -> tuple[dict[str, Paths], bool]:
        """Return the names that an argument gives with what each stands for, and whether these are all."""
        if node is None:
            return {}, False
        child = node.child_by_field_name
        match node.type:
            case "parenthesized_expression":
                return self.arguments(child("expression"))
            case "variable_expression":
                target = self.file.scopes.by_node[node.id].target
                return self.arguments(None if target is None else target.value)
            case "binary_expression" if any(c.type == "//" for c in node.children):
                left, left_complete = self.arguments(child("left"))
                right, right_complete = self.arguments(child("right"))
                return left | right, left_complete and right_complete
            case "attrset_expression" | "rec_attrset_expression":
                return self._literal_arguments(node), True
            case _:
                return {}, False

    def _literal_arguments(self, node: Node) -> dict[str, Paths]:
        result: dict[str, Paths] = {}
        for item in bindings_of(node):
            source = item.child_by_field_name("expression")
            if item.type == "binding":
                attrpath = item.child_by_field_name("attrpath")
                names = [] if attrpath is None else path_names(attrpath)
                if names and names[0] is not None:
                    result[names[0]] = self.paths(source) if len(names) == 1 else NOTHING
                continue
            for attr in inherited(item):
                name = static_name(attr)
                if name is None:
                    continue
                if source is not None:
                    result[name] = self._step(self.paths(source), name)
                else:
                    reference = self.file.scopes.by_node.get(attr.id)
                    result[name] = NOTHING if reference is None else self.binding_paths(reference.target)
        return result


def flake_files(root: Path) -> list[Path]:
    """Return the files that the contract binds. Raises FileNotFoundError when ROOT has no flake.nix."""
    flake = root / "flake.nix"
    if not flake.is_file():
        raise FileNotFoundError(f"{flake}: not found; give the folder that holds flake.nix")
    debian = root / "nix" / "debian"
    found = {flake}
    for folder in (root / "overlays", root / "nix"):
        found.update(p for p in folder.rglob("*.nix") if debian not in p.parents)
    return sorted(found)


def own_attributes(analysis: Analysis) -> dict[str, Paths]:
    """Return what an overlay file puts into `gb10`: each attribute name, with what it stands for.

    Names of inner sets count too, because a scope of the flake's own may offer them as arguments.
    """
    found: dict[str, Paths] = {}
    for node in walk(analysis.file.root):
        attrpath = node.child_by_field_name("attrpath") if node.type == "binding" else None
        value = node.child_by_field_name("expression")
        if attrpath is None or value is None:
            continue
        names = path_names(attrpath)
        if names[0] != OWN:
            continue
        for name in spelled(node) - {OWN}:
            found.setdefault(name, NOTHING)
        if len(names) > 1 and names[1] is not None:
            held = {names[1]: analysis.paths(value) if len(names) == len((OWN, names[1])) else NOTHING}
        else:
            held = analysis.arguments(value)[0]
        for name, paths in held.items():
            found[name] = found.get(name, NOTHING) | paths
    return found


def analyse(root: Path) -> Report:
    """Return what the flake below `root` uses of its base. Raises NixSyntaxError, OSError."""
    root = root.resolve()
    files = {path: File(path, str(path.relative_to(root))) for path in flake_files(root)}
    held: dict[str, Paths] = {}
    # A file's arguments can depend on its caller's own arguments: repeat until nothing changes.
    for _ in range(len(files) + 2):
        report = Report()
        calls: dict[Path, list[Call]] = {path: [] for path in files}
        now_held: dict[str, Paths] = {}
        for file in files.values():
            analysis = Analysis(file, held, report, files)
            analysis.run()
            for callee, call in analysis.made_calls:
                calls[callee.path].append(call)
            if root / "overlays" in file.path.parents:
                for name, paths in own_attributes(analysis).items():
                    now_held[name] = now_held.get(name, NOTHING) | paths
        if now_held == held and all(files[path].calls == made for path, made in calls.items()):
            break
        held = now_held
        for path, made in calls.items():
            files[path].calls = made
    return report
