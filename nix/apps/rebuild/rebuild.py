"""`nix run .#rebuild`: build every derivation of this flake once more and compare it with what the store has.

What there is to rebuild, Nix says (`nix derivation show`), and Nix rebuilds and finds a difference
(`nix build --rebuild`). This program chooses, says which files differ, and holds that against the
exceptions (exceptions.toml).
"""

import argparse
import dataclasses
import difflib
import fnmatch
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

EQUAL, EXCUSED, DIFFERS, FAILED = "equal", "excused", "differs", "failed"


def refuse(message: str) -> NoReturn:
    """End with one line: what was asked for cannot be done."""
    print(f"rebuild: error: {message}", file=sys.stderr)
    sys.exit(2)


@dataclasses.dataclass(frozen=True)
class Derivation:
    """What Nix says of a derivation. `fetch`: the hash of its output is given, and always compared."""

    path: str
    name: str
    system: str
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    fetch: bool


@dataclasses.dataclass(frozen=True)
class Exempt:
    """Files that differ between two builds by somebody else's doing: patterns of a name and of its files."""

    name: str
    files: tuple[str, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class Flake:
    """What the flake says of itself (rebuild.nix): derivations by their output's name, and three kinds."""

    system: str
    outputs: dict[str, str]
    results: frozenset[str]
    long: frozenset[str]
    base: tuple[str, ...]


@dataclasses.dataclass
class Row:
    """A derivation that was built again. `first_seconds`: the build before it, where the store had none."""

    name: str
    derivation: str
    state: str
    seconds: float
    first_seconds: float | None = None
    files: list[str] = dataclasses.field(default_factory=list)
    note: str = ""


class Nix:
    """The Nix that started this program."""

    def __init__(self) -> None:
        program = os.environ.get("NIXW_PROGRAM") or "nix"
        found = shutil.which(program)
        if found is None:
            refuse(f"{program} is not there; put nix on PATH, or start this with ./nixw run .#rebuild")
        self.command = [found, "--extra-experimental-features", "nix-command flakes"]

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Status, output and errors."""
        try:
            process = subprocess.Popen(
                [*self.command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        except OSError as gone:  # it was there when this began
            return 127, "", f"{self.command[0]}: {gone.strerror}"
        with process:
            try:
                out, error = process.communicate()
            except KeyboardInterrupt:
                process.terminate()
                raise
        return process.returncode, out, error

    def json(self, *arguments: str) -> Any:
        """What a command answers. It must succeed."""
        status, out, error = self.run(*arguments)
        if status != 0:
            refuse(f"nix {' '.join(arguments[:2])} failed: {reason_of(error)}")
        return json.loads(out)


def reason_of(text: str) -> str:
    """The line that says what went wrong, out of all that Nix said."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:") and line != "error:"]
    return errors[0].removeprefix("error: ") if errors else lines[-1] if lines else "without a word"


def derivations_of(answer: dict[str, Any]) -> dict[str, Derivation]:
    """`nix derivation show`: of older Nix, and of newer ones, which leave the store's folder out of names."""

    def whole(name: str) -> str:
        return name if name.startswith("/") else f"/nix/store/{name}"

    found = {}
    for path, value in answer.get("derivations", answer).items():
        inputs = value["inputDrvs"] if "inputDrvs" in value else value["inputs"]["drvs"]
        outputs = value["outputs"].values()
        found[whole(path)] = Derivation(
            path=whole(path),
            name=value["name"],
            system=value["system"],
            outputs=tuple(whole(output["path"]) for output in outputs if "path" in output),
            inputs=tuple(whole(name) for name in inputs),
            fetch=any("hash" in output for output in outputs),
        )
    return found


def closure(derivations: dict[str, Derivation], roots: Iterable[str]) -> set[str]:
    """The roots and all that they are made of."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        path = waiting.pop()
        if path not in found and path in derivations:
            found.add(path)
            waiting.extend(derivations[path].inputs)
    return found


def ours(derivations: dict[str, Derivation], flake: Flake) -> list[Derivation]:
    """What this flake builds, by name: not the base's, no fetches, no results of tests."""
    paths = closure(derivations, flake.outputs.values()) - closure(derivations, flake.base) - flake.results
    return sorted(
        (derivations[path] for path in paths if not derivations[path].fetch),
        key=lambda each: (each.name, each.path),
    )


def chosen(
    names: Sequence[str], everything: list[Derivation], flake: Flake, without: set[str]
) -> tuple[list[Derivation], list[Derivation]]:
    """What to rebuild, and what not: what is named (outputs, patterns of names), or all but `without`."""
    if not names:
        return [each for each in everything if each.path not in without], [
            each for each in everything if each.path in without
        ]
    wanted: set[str] = set()
    for name in names:
        found = {each.path for each in everything if fnmatch.fnmatchcase(each.name, name)}
        if flake.outputs.get(name) in {each.path for each in everything}:
            found.add(flake.outputs[name])
        if not found:
            if flake.outputs.get(name) in flake.results:
                refuse(f"{name} is a result of tests, which holds times, and not a build")
            known = [*flake.outputs, *(each.name for each in everything)]
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"; near: {', '.join(near)}" if near else ""
            refuse(f"nothing that this flake builds is called {name}{hint}; --list says what is")
        wanted |= found
    return [each for each in everything if each.path in wanted], []


def valid_paths(nix: Nix, paths: Iterable[str]) -> set[str]:
    """Those of the paths that the store has."""
    answer = nix.json("path-info", "--json", *paths)
    answer = answer.get("info", answer) if isinstance(answer, dict) else answer
    if isinstance(answer, list):
        return {each["path"] for each in answer if each.get("valid", True)}
    return {
        path if path.startswith("/") else f"/nix/store/{path}"
        for path, value in answer.items()
        if value is not None
    }


def content(root: Path) -> dict[str, str]:
    """Each file below a path: its kind, what Nix keeps of its mode, and its bytes or target."""

    def entries(path: Path, name: str) -> Iterator[tuple[str, str]]:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            yield name, f"link {path.readlink()}"
        elif stat.S_ISDIR(mode):
            yield name, "folder"
            for child in path.iterdir():
                yield from entries(child, f"{name}/{child.name}" if name else child.name)
        else:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            yield name, f"{'program' if mode & stat.S_IXUSR else 'file'} {digest}"

    return dict(entries(root, ""))


def different_files(one: Path, other: Path) -> list[str]:
    """Names of the files that are not the same in both; "." is the path itself."""
    before, after = content(one), content(other)
    return sorted(name or "." for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def exempt_files(name: str, files: Iterable[str], exempt: Iterable[Exempt]) -> tuple[list[str], list[str]]:
    """The files that no exception names, and the reasons of those that one does."""
    mine = [each for each in exempt if fnmatch.fnmatchcase(name, each.name)]
    left: list[str] = []
    reasons: dict[str, None] = {}
    for file in files:
        reason = next((e.reason for e in mine if any(fnmatch.fnmatchcase(file, p) for p in e.files)), None)
        if reason is None:
            left.append(file)
        else:
            reasons[reason] = None
    return left, list(reasons)


def rebuild(nix: Nix, derivation: Derivation, built: bool, exempt: Sequence[Exempt]) -> Row:
    """Build again and compare. What the store lacks is built first."""
    row = Row(derivation.name, derivation.path, FAILED, 0.0)
    target = f"{derivation.path}^*"
    began = time.monotonic()
    if not built:
        status, _, error = nix.run("build", "--no-link", target)
        row.first_seconds = round(time.monotonic() - began, 1)
        if status != 0:
            row.note = f"cannot be built: {reason_of(error)}"
            return row
        began = time.monotonic()
    # A former run's, which Nix would overwrite: what lies there afterwards is this one's.
    stamps = {output: stamp(f"{output}.check") for output in derivation.outputs}
    # With keep-failed Nix keeps the other build too, at PATH.check.
    status, _, error = nix.run("build", "--no-link", "--rebuild", "--keep-failed", target)
    row.seconds = round(time.monotonic() - began, 1)
    if status == 0:
        row.state = EQUAL
        return row
    if "may not be deterministic" not in error:
        row.note = f"cannot be built again: {reason_of(error)}"
        return row
    row.state = DIFFERS
    for output in derivation.outputs:
        other = Path(f"{output}.check")
        if stamp(str(other)) in (None, stamps[output]):
            continue
        row.files += different_files(Path(output), other)
        row.note = f"the other build: {other}"
    if not row.files:
        row.note = f"Nix says so and kept no other build: {reason_of(error)}"
        return row
    left, reasons = exempt_files(row.name, row.files, exempt)
    if not left:
        row.state, row.note = EXCUSED, "; ".join(reasons)
    return row


def stamp(path: str) -> tuple[int, int] | None:
    """Tells one build at a path from another; None where there is none."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_ctime_ns


def table(rows: Sequence[Row]) -> str:
    """The rows, for people."""
    width = max([len("derivation"), *(len(row.name) for row in rows)])
    lines = [f"{'derivation':{width}}  seconds  result", f"{'-' * width}  -------  ------"]
    for row in rows:
        words = row.state
        if row.files:
            shown = ", ".join(row.files[:5])
            words += f" in {len(row.files)}: {shown}{', …' if len(row.files) > 5 else ''}"
        if row.first_seconds is not None:
            words += f", built first in {row.first_seconds} s"
        if row.note:
            words += f" ({row.note})"
        lines.append(f"{row.name:{width}}  {row.seconds:7.1f}  {words}")
    return "\n".join(lines)


def unneeded(rows: Sequence[Row], everything: Sequence[Derivation], exempt: Sequence[Exempt]) -> list[str]:
    """What is to be said of exceptions that excuse nothing any more."""
    said = []
    for each in exempt:
        mine = [row for row in rows if fnmatch.fnmatchcase(row.name, each.name)]
        if not any(fnmatch.fnmatchcase(derivation.name, each.name) for derivation in everything):
            said.append(f"the exception for {each.name} names nothing that is built: remove it")
        elif mine and all(row.state == EQUAL for row in mine):
            said.append(f"the exception for {each.name} was not needed, both builds are equal: can it go?")
        else:
            files = [file for row in mine for file in row.files]
            said += [
                f"the exception for {each.name} names {pattern}, which is the same in both builds: can it go?"
                for pattern in each.files
                if mine and not any(fnmatch.fnmatchcase(file, pattern) for file in files)
            ]
    return said


def read_exceptions(file: Path) -> list[Exempt]:
    return [
        Exempt(each["name"], tuple(each["files"]), each["reason"])
        for each in tomllib.loads(file.read_text()).get("exceptions", [])
    ]


def arguments_of(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="rebuild",
        description="Build every derivation of this flake once more and compare it with what the store has. "
        "Status 1: one differs or cannot be built.",
    )
    parser.add_argument("--flake", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--exceptions", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="an output (kernels), or a pattern of names (torch-*)",
    )
    parser.add_argument("--all", action="store_true", help="also what takes long to build")
    parser.add_argument("--built", action="store_true", help="only what the store has")
    parser.add_argument("--list", action="store_true", help="say what would be rebuilt, and rebuild nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    return parser.parse_intermixed_args(words)


def write_json(file: Path, value: Any) -> None:
    """Whole or not at all."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(json.dumps(value, indent=1) + "\n")
    new.replace(file)


def main(words: Sequence[str]) -> int:
    """Choose, rebuild, tell."""
    asked = arguments_of(words)
    if asked.json and not asked.json.absolute().parent.is_dir():
        refuse(f"--json {asked.json}: there is no folder {asked.json.absolute().parent}")
    if asked.json and asked.json.is_dir():
        refuse(f"--json {asked.json}: it is a folder; name a file")
    given = json.loads(asked.flake.read_text())
    flake = Flake(
        system=given["system"],
        outputs=given["outputs"],
        results=frozenset(given["results"]),
        long=frozenset(given["long"]),
        base=tuple(given["base"]),
    )
    exempt = read_exceptions(asked.exceptions)
    nix = Nix()

    roots = sorted({*flake.outputs.values(), *flake.base})
    derivations = derivations_of(nix.json("derivation", "show", "--recursive", *roots))
    everything = ours(derivations, flake)
    valid = valid_paths(nix, sorted({path for each in everything for path in each.outputs}))
    built = {each.path for each in everything if valid.issuperset(each.outputs)}
    # Long: what is marked, what is emulated, and what is made of such things that the store lacks.
    unbuilt = {each.path for each in everything} - built
    long: set[str] = set()
    if not asked.all and not asked.names:
        long = {*flake.long, *(each.path for each in everything if each.system != flake.system)}
    missing = long & unbuilt
    long |= {path for path in unbuilt if closure(derivations, [path]) & missing}
    rows, left_out = chosen(asked.names, everything, flake, long | (unbuilt if asked.built else set()))
    if asked.built:
        rows = [each for each in rows if each.path in built]
        if asked.names and not rows:
            refuse("the store has nothing of that; without --built it is built first")

    if asked.list:
        for each in everything:
            why = "long" if each.path in long else "not built yet" if each.path in unbuilt else ""
            mark = "+" if each in rows else "-"
            print(f"{mark} {each.name}{f'  ({why})' if why else ''}")
        print(f"{len(rows)} of {len(everything)} would be rebuilt")
        return 0

    done: list[Row] = []
    interrupted = False
    for asked_to_end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked_to_end, signal.default_int_handler)
    try:
        for number, each in enumerate(rows, 1):
            print(f"[{number}/{len(rows)}] {each.name}", file=sys.stderr, flush=True)
            row = rebuild(nix, each, each.path in built, exempt)
            done.append(row)
            if row.state in (DIFFERS, FAILED):
                print(f"  {row.state}: {', '.join(row.files[:5])} {row.note}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        interrupted = True

    counts = {state: sum(row.state == state for row in done) for state in (EQUAL, EXCUSED, DIFFERS, FAILED)}
    said = unneeded(done, everything, exempt)
    print(table(done))
    for line in said:
        print(f"note: {line}")
    if left_out:
        print(f"left out: {len(left_out)} ({', '.join(sorted({each.name for each in left_out})[:8])}, …)")
    if interrupted:
        print(f"interrupted: {len(rows) - len(done)} were not looked at")
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    if asked.json:
        write_json(
            asked.json,
            {
                "rows": [dataclasses.asdict(row) for row in done],
                "counts": counts,
                "left out": [each.name for each in left_out],
                "not looked at": [each.name for each in rows[len(done) :]],
                "notes": said,
            },
        )
    if interrupted:
        return 130
    return 1 if counts[DIFFERS] or counts[FAILED] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
